"""Weights as ``model.safetensors``, and the way back to a Denoiser."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from diffusion_lightning.denoiser import Denoiser, NetworkDenoiser
from diffusion_lightning.export.record import NAME, read_record, write_record
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.guided import GuidanceChoice, Steering
from diffusion_lightning.training.recipe import build
from diffusion_lightning.training.trained import TrainedModel

WEIGHTS = "model.safetensors"


@dataclass
class _Sampling:
    """A field for :func:`build` to check a sampler's recipe against."""

    sampler: Sampler


@dataclass
class _Guided:
    """Likewise for guidance."""

    guidance: GuidanceCallable | None = None


def save_denoiser(
    denoiser: NetworkDenoiser,
    folder: Path,
    *,
    sampler: Sampler | None = None,
    shape: Sequence[int] | None = None,
    guidance: GuidanceCallable | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.yaml`` to an existing folder; :func:`load_denoiser` reads them back."""
    part = folder / f"{WEIGHTS}.part"
    save_model(denoiser.network, str(part), metadata={"format": "pt"})
    shutil.copyfile(part, folder / WEIGHTS)  # safetensors' own file nobody but its owner may read
    part.unlink()
    write_record(folder, "safetensors", denoiser, sampler, shape, guidance)


def load_denoiser(
    folder: str | os.PathLike[str], device: torch.device | str = "cpu", guidance: GuidanceChoice = "own"
) -> Denoiser:
    """The denoiser of a checkpoint with its EMA weights, in evaluation mode; guided if samples of it are.

    Bit for bit the same from the checkpoint itself and from a folder that ``lightning export --format safetensors``
    wrote of it. Reading runs no code of theirs: a folder's ``config.yaml``, as a checkpoint, names classes, which are
    imported and built with plain values as arguments. A class may be any that is installed and of the type that is
    asked for in its place: a ``torch.nn.Module`` for the network, an ``SDE``, a ``Parameterization``; functions and
    classes of other types are refused and not called.

    Args:
        folder: what was given as ``--output``; or the checkpoint, a file ``….ckpt``.
        device: where the weights go.
        guidance: what steers it: ``"own"``, what the checkpoint or the export says; None for none, which gives the
            :class:`~diffusion_lightning.NetworkDenoiser` itself, as likelihoods need it; or as in
            :meth:`diffusion_lightning.ScoreModule.sample`.

    Raises:
        FileNotFoundError: if the checkpoint, the folder or one of its files is not there.
        ValueError: if a file is damaged, the two do not fit each other, or a class is not allowed.
    """
    path = Path(folder)
    if path.suffix == ".ckpt":
        denoiser = TrainedModel.load(path).guided(guidance)
    else:
        bare, own = _of_folder(path)
        denoiser = Steering()(bare, own if isinstance(guidance, str) else guidance)
    return denoiser.to(device).eval()


def _of_folder(folder: Path) -> tuple[NetworkDenoiser, GuidanceCallable | None]:
    """The denoiser, and what steers it."""
    record = read_record(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r}: has no {WEIGHTS} (its format is {record.get('format')!r}): "
            "give one of --format safetensors"
        )
    denoiser: NetworkDenoiser = _build(NetworkDenoiser, record.get("denoiser"), folder)
    try:
        load_model(denoiser.network, str(path))
    except (SafetensorError, RuntimeError) as error:  # of the latter type for weights of another network
        reason = " ".join(str(error).split())
        raise ValueError(f"folder={str(folder)!r}: {WEIGHTS} is damaged or does not fit {NAME}: {reason}") from error
    return denoiser, _build(_Guided, {"guidance": record.get("guidance")}, folder).guidance


def load_sampler(folder: str | os.PathLike[str]) -> Sampler:
    """The sampler that an exported folder's checkpoint draws samples with, its settings included.

    Raises:
        FileNotFoundError: if the folder or its ``config.yaml`` is not there.
        ValueError: if the file is damaged, or does not name a sampler.
    """
    folder = Path(folder)
    return _build(_Sampling, {"sampler": read_record(folder).get("sampler")}, folder).sampler


def _build(cls: type, arguments: Any, folder: Path) -> Any:
    if not isinstance(arguments, dict):
        raise ValueError(f"folder={str(folder)!r}: its {NAME} is damaged: it does not say how to make a {cls.__name__}")
    try:
        return build(cls, arguments)
    except ValueError as error:
        raise ValueError(f"folder={str(folder)!r}: its {NAME} cannot be used: {error}") from error
