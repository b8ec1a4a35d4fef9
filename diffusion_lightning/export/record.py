"""``config.yaml`` of an exported folder: what the denoiser is made of, as plain data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.recipe import describe
from diffusion_lightning.version import __version__

NAME = "config.yaml"

KEY = "diffusion_lightning"
"""The record's own mark: the version of this package that wrote it."""


def write_record(
    folder: Path,
    format: str,
    denoiser: NetworkDenoiser,
    sampler: Sampler | None,
    shape: Sequence[int] | None,
    guidance: GuidanceCallable | None = None,
) -> None:
    """Write ``config.yaml``; see :func:`record_text`."""
    (folder / NAME).write_text(record_text(format, denoiser, sampler, shape, guidance), encoding="utf-8")


def record_text(
    format: str,
    denoiser: NetworkDenoiser,
    sampler: Sampler | None,
    shape: Sequence[int] | None,
    guidance: GuidanceCallable | None = None,
) -> str:
    """The record of an export, as YAML.

    It holds the recipes (see :mod:`diffusion_lightning.training.recipe`) of the denoiser's network, SDE and
    parameterization, of the sampler and of the guidance, the shape of one example, the number of classes, and the
    range [t_min, T] of times.

    Args:
        format: the name of what is written.
        denoiser: a :class:`Denoiser` itself.
        sampler: which draws samples by default.
        shape: of one example, ``(C, H, W)`` or ``(D,)``; None if it is not known.
        guidance: what steers the denoiser; None for none.
    """
    record = {
        KEY: __version__,
        "format": format,
        "denoiser": recipe_of(denoiser),
        "sampler": describe(sampler),
        "guidance": describe(guidance),
        "shape": None if shape is None else list(shape),
        "num_classes": denoiser.num_classes,
        "times": [denoiser.sde.t_min, denoiser.sde.T],
    }
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True)


def recipe_of(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """The arguments that :func:`diffusion_lightning.training.recipe.build` makes the denoiser from."""
    return {name: describe(getattr(denoiser, name)) for name in ("network", "sde", "parameterization")}


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an exported folder, as plain data.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is something else.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"folder={str(folder)!r}: has no {NAME}: give one that `lightning export` wrote")
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"folder={str(folder)!r}: its {NAME} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(record, dict) or KEY not in record:
        raise ValueError(f"folder={str(folder)!r}: its {NAME} is of something else: give an exported folder")
    return record
