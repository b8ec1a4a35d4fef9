"""Reading checkpoint files: tensors and plain values only, and verified."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from diffusion_lightning.messages import warn
from diffusion_lightning.training.foreign import recognised

KEY = "diffusion_lightning"
"""Where a checkpoint keeps what is ours: the package's version, the loggers' run ids, where the run stands."""

LOGGED = "logged"
"""Where a checkpoint that was saved before an epoch's pictures keeps what its step had logged by then."""


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of this package. Nothing in the file is executed.

    Args:
        path: the ``.ckpt`` file.
        map_location: where its tensors go, as in ``torch.load``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds code, or was not written by a ScoreModule.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={str(path)!r}: there is no such file{_neighbours(path)}")
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # what torch and zipfile raise for a damaged file is of many types
        if known := recognised(path):
            raise ValueError(f"ckpt_path={str(path)!r}: {known}") from error
        if "GLOBAL" in str(error):  # the pickle's way of naming anything that would be called or built
            raise ValueError(
                f"ckpt_path={str(path)!r}: holds something other than tensors and plain values, and was not loaded "
                "(such a file could run code): give a checkpoint that this package wrote"
            ) from error
        raise ValueError(
            f"ckpt_path={str(path)!r}: is damaged, or not a checkpoint at all ({path.stat().st_size} bytes): "
            "give another checkpoint of the run"
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        known = recognised(path)
        hint = f", {known}" if known is not None else ": give a checkpoint of a ScoreModule"
        raise ValueError(f"ckpt_path={str(path)!r}: is a file of something else{hint}")
    return checkpoint


def load_newest(folder: Path, map_location: Any = "cpu") -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint in a folder and its content; None if the folder holds no checkpoint.

    Those that are damaged are each reported by a warning.

    Args:
        folder: of checkpoints.
        map_location: as in :func:`load_checkpoint`.

    Raises:
        ValueError: if there are checkpoints, but none is intact.
    """
    found = sorted(folder.glob("*.ckpt"), key=_newest_first)
    for path in found:
        try:
            return path, load_checkpoint(path, map_location)
        except (ValueError, OSError) as error:
            warn(f"{error}; looking for the next older one")
    if found:
        raise ValueError(f"ckpt_path: no checkpoint in {folder} is intact ({', '.join(p.name for p in found)})")
    return None


def _newest_first(path: Path) -> tuple[bool, int]:
    return path.name != "last.ckpt", -path.stat().st_mtime_ns


def _check_sums(path: Path) -> None:
    """Compare every part of the file with its check sum, which ``torch.load`` does not."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the check sum of {damaged} is wrong")


def _neighbours(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    return f"; its folder holds {', '.join(found)}" if found else ""
