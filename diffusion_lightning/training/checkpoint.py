"""Writing checkpoint files atomically: whole or absent."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from diffusion_lightning.disk import free_space
from diffusion_lightning.training.checkpoint_file import load_checkpoint


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
