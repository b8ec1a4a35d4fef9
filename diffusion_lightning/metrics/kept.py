"""What took long to compute of many images, on disk: tensors that are whole or not there, and their parts before that.

The parts do not depend on the number of processes, so a computation that was interrupted goes on from those that are
there, whoever goes on with it.
"""

import glob
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

BATCH = 500
"""How many images are read at once."""

PART = 10_000
"""At least so many images are a part, but for the last one: so a set of no more than that is one part."""

MOST_PARTS = 64


def parts_of(count: int) -> list[range]:
    """The images 0 … ``count`` − 1 in parts of whole batches."""
    least = max(PART, -(-count // MOST_PARTS))
    size = BATCH * -(-least // BATCH)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def part_path(path: Path, number: int, count: int) -> Path:
    """Where one of so many parts is kept of what will be at ``path``."""
    return path.with_name(f"{path.stem}-part-{number:02d}-of-{count:02d}{path.suffix}")


def stored(path: Path | None, *names: str) -> dict[str, Tensor] | None:
    """The tensors of these names in a file; None if it is not there, holds something else, or is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        found = load_file(path)
        return {name: found[name] for name in names}
    except (OSError, SafetensorError, KeyError):
        return None


def store(path: Path | None, tensors: Mapping[str, Tensor]) -> bool:
    """Write them as a whole, and say whether that was possible; without it time is lost, not results."""
    if path is None:
        return False
    draft = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft)
        draft.replace(path)
    except (OSError, SafetensorError):  # of the latter type if the disk is full
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    return True


def forget_parts(path: Path) -> None:
    """Remove the parts of what is at ``path`` now, also those that were being written when a process was killed."""
    for part in path.parent.glob(f"{glob.escape(path.stem)}-part-*"):
        with suppress(OSError):
            part.unlink(missing_ok=True)
