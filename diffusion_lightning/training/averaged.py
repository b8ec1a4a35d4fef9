"""The denoiser that a checkpoint holds, with its averaged weights."""

import os
from typing import Any

import torch

from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.training.checkpoint_file import load_checkpoint
from diffusion_lightning.training.recipe import build


def load_averaged(path: str | os.PathLike[str]) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The denoiser of a checkpoint, in evaluation mode on the CPU; and all that the checkpoint holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds code, or is not of a ScoreModule.
    """
    checkpoint = load_checkpoint(path)
    recipe = checkpoint["hyper_parameters"]
    parts = {name: recipe[name] for name in ("network", "sde", "parameterization")}
    denoiser: NetworkDenoiser = build(NetworkDenoiser, parts)
    _load_averages(denoiser, checkpoint)
    return denoiser.eval(), checkpoint


def _load_averages(denoiser: NetworkDenoiser, checkpoint: dict[str, Any]) -> None:
    """Give a denoiser the averaged weights of a checkpoint, and what has no average as it was trained."""
    prefix, state = "denoiser.", checkpoint["state_dict"]
    denoiser.load_state_dict({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, checkpoint["ema"]["shadow_params"], strict=True):
            parameter.copy_(average)
