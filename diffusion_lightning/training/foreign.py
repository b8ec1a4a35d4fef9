"""Format detection: what a file that is no checkpoint of this package looks like, without running any of it."""

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

READ = 2**24
"""Bytes of a pickle that are looked at: the names in it come before the numbers."""

NOT_YET = "it cannot be read yet"
DIFFUSERS = (
    "to train it further or sample from it: --model.network DiffusersUNet --model.network.pretrained, the folder that "
    "holds it and its config.json"
)


def recognised(path: Path) -> str | None:
    """In words what a file or a folder of another program is, and what can be done with it; None if it is unknown.

    Known are EDM's and StyleGAN's pickled networks, checkpoints of score_sde, of denoising-diffusion-pytorch, of latent
    and guided diffusion, of other Lightning modules, weights of diffusers and other plain ones. Pickles are read as a
    list of their instructions, none of which is followed.
    """
    if path.is_dir():
        if (path / "model_index.json").is_file() or (path / "config.json").is_file():
            return f"looks like a model of diffusers: {DIFFUSERS}"
        return None
    try:
        if path.suffix == ".safetensors":
            return _of_weights(_safetensors_names(path))
        return _of_pickle(set(_strings(path)))
    except Exception:  # what zipfile raises for a damaged file is of many types
        return None


def _of_pickle(words: set[str]) -> str | None:
    """By the strings in a pickle: keys, and what it would call."""
    if "diffusion_lightning" in words:
        return None  # one of ours, and damaged
    if any("torch_utils.persistence" in word or "dnnlib" in word for word in words):
        return f"looks like a pickled network of EDM or StyleGAN, which runs code when it is loaded: {NOT_YET}"
    if {"optimizer", "model", "ema", "step", "shadow_params"} <= words:
        return f"looks like a checkpoint of score_sde (score_sde_pytorch): {NOT_YET}"
    if {"step", "model", "ema"} <= words and any(word.startswith("ema_model.") for word in words):
        return f"looks like a checkpoint of denoising-diffusion-pytorch (lucidrains): {NOT_YET}"
    if any(word.startswith("model.diffusion_model.") for word in words):
        return f"looks like a checkpoint of latent or stable diffusion: {NOT_YET}"
    if {"pytorch-lightning_version", "state_dict"} <= words:
        return "looks like a Lightning checkpoint of another module than ScoreModule: give one of a ScoreModule"
    return _of_weights(words)


def _of_weights(names: set[str]) -> str | None:
    """By the names of weights."""
    if any(name.endswith("time_embedding.linear_1.weight") for name in names):
        return f"looks like weights of diffusers: {DIFFUSERS}"
    if {"time_embed.0.weight", "input_blocks.0.0.weight"} <= names:
        return f"looks like weights of guided-diffusion or improved-diffusion: {NOT_YET}"
    if any(name.endswith((".weight", ".bias")) for name in names):
        return (
            "looks like plain weights (a state_dict), which do not say what network and process they are of: give a "
            "checkpoint of a ScoreModule, or load them in Python into a network of your own"
        )
    return None


def _safetensors_names(path: Path) -> set[str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > READ:
            raise ValueError("no header")
        return set(json.loads(file.read(length)))


def _strings(path: Path) -> Iterator[str]:
    """All strings of a pickle, or of that in a zip file of PyTorch, or of the several in an older file of it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as file:
                yield from _of_stream(io.BytesIO(file.read(READ)))
    else:
        with open(path, "rb") as file:
            yield from _of_stream(io.BytesIO(file.read(READ)))


def _of_stream(stream: BinaryIO) -> Iterator[str]:
    try:
        while True:
            for _, argument, _ in pickletools.genops(stream):  # one pickle
                if isinstance(argument, str):
                    yield argument
    except (ValueError, UnicodeDecodeError):  # the end, or no pickle
        return
