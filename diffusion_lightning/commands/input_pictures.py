"""Pictures that a command is given, as a trained model has them: in [-1, 1], of its channels."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from diffusion_lightning.commands.usage import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_pictures(path: Path, channels: int, option: str) -> dict[str, Tensor]:
    """A picture, or all in a folder by their names without a suffix; each ``(channels, H, W)`` in [-1, 1].

    Colour is turned to grey, or grey to colour, with a word about it. A picture is turned upright if its camera
    recorded a rotation.

    Args:
        path: of a file, or of a folder.
        channels: 1 or 3.
        option: of the command line, for what is said.

    Raises:
        UsageError: if there is nothing at the path, or no picture in it, or a file is no picture that can be read.
    """
    if not path.exists():
        raise UsageError(f"{option}={str(path)!r}: there is no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"{option}={str(path)!r}: holds no pictures: must hold some {', '.join(SUFFIXES)}")
    pictures, converted = {}, 0
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"pixels of mode {image.mode} are not 8-bit")
                converted += (image.mode in ("1", "L", "LA")) == (channels == 3)
                levels = np.array(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).partition(": ")[0].splitlines()[0]
            raise UsageError(f"{option}={str(file)!r}: is no picture that can be read ({reason})") from error
        if file.stem in pictures:
            raise UsageError(f"{option}={str(path)!r}: two pictures are named {file.stem}: rename one")
        pictures[file.stem] = torch.from_numpy(levels).reshape(*levels.shape[:2], channels).permute(2, 0, 1) / 127.5 - 1
    if converted:
        kinds = ("colour", "grey") if channels == 1 else ("grey", "colour")
        print(f"{option}: {converted} of {len(files)} pictures turned from {kinds[0]} to {kinds[1]}", file=sys.stderr)
    return pictures


def check_size(pictures: dict[str, Tensor], size: tuple[int, int], option: str, why: str) -> None:
    """Raise a UsageError naming the first picture that is not of this (height, width), and why it must be."""
    for name, picture in pictures.items():
        height, width = picture.shape[-2:]
        if (height, width) != size:
            raise UsageError(f"{option}: {name} has {width} × {height} pixels: must have {size[1]} × {size[0]}, {why}")
