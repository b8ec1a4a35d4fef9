"""Checkpoint files: whole or absent when written; tensors and plain values only, and verified, when read."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from diffusion_lightning.disk import free_space
from diffusion_lightning.training.foreign import recognised

KEY = "diffusion_lightning"
"""Where a checkpoint keeps what is ours: the package's version, the loggers' run ids, where the run stands."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, flushes it to the disk and renames it, in one pass over its bytes.

    A file of the checkpoint's name is therefore a whole one, whenever the process or the machine stops. Where it cannot
    be written (the disk is full, the folder is gone), a warning names the file and the free space, the former file
    stays as it was, and training goes on.

    Use: ``Trainer(plugins=[WholeCheckpointIO()])``; the ``lightning`` command always does.
    """

    has_failed = False
    """Whether the last checkpoint could not be written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to the local file ``path``, as ``torch.save`` does."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self.has_failed = False
            with suppress(OSError):  # not every system can
                _flush_folder(path.parent)
        except (OSError, RuntimeError) as error:  # of the latter type where torch's own writer meets a full disk
            rank_zero_warn(
                f"{path} could not be written: {' '.join(str(error).split())} ({free_space(path.parent)}). "
                "Training goes on; the checkpoint that was there before is unchanged"
            )
            _remove(part)
            self.has_failed = True

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As :func:`load_checkpoint`, whatever ``weights_only`` says."""
        return load_checkpoint(path, map_location)


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
            rank_zero_warn(f"{error}; looking for the next older one")
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


def _flush_folder(folder: Path) -> None:
    """Write the new name to the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _neighbours(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    return f"; its folder holds {', '.join(found)}" if found else ""
