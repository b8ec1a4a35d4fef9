"""The tasks of `lightning restore`: by which operator each has been measured, and of which size its pictures are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.inverse import Crop, Downsample, GaussianBlur, Grayscale, Inpainting, Operator
from diffusion_lightning.inverse.masks import WORDS, missing_pixels

Task = Literal["inpaint", "colour", "upscale", "deblur", "outpaint", "custom"]

OPTIONS = {"inpaint": "mask", "upscale": "factor", "deblur": "sigma", "outpaint": "window", "custom": "operator"}
"""The one that each task has."""

MASKS = f"{WORDS}, or a picture's path"


@dataclass
class Measuring:
    """How a task's pictures have been measured.

    Attributes:
        operator: A.
        channels: of the pictures that were measured.
        size: (height, width) of them; None where the operator makes no pictures.
        why: it is of that size, in words.
    """

    operator: Operator
    channels: int
    size: tuple[int, int] | None
    why: str


def measuring(
    task: Task,
    shape: tuple[int, ...],
    mask: str | None = None,
    factor: int | None = None,
    sigma: float | None = None,
    window: tuple[int, int] | None = None,
    operator: Operator | None = None,
    seed: int = 0,
) -> Measuring:
    """What a task's option, or its default, means for a model of pictures of this shape, (C, H, W).

    Raises:
        UsageError: for options that do not go together, or not with the shape.
        ValueError: as the operator does.
    """
    channels, height, width = shape
    of_model = "as the model's"
    given = {"inpaint": mask, "upscale": factor, "deblur": sigma, "outpaint": window, "custom": operator}
    for other, value in given.items():
        if value is not None and other != task:
            raise UsageError(f"{OPTIONS[other]}: goes with --task {other}, and does nothing for {task}: leave it out")
    if task == "custom" and operator is None:
        raise UsageError("operator: --task custom needs one, such as --operator MotionBlur --operator.length 7")
    match task:
        case "inpaint":
            known = ~mask_of(mask if mask is not None else "center", (height, width), seed)
            return Measuring(Inpainting(known), channels, (height, width), of_model)
        case "colour":
            if channels != 3:
                raise UsageError("task=colour: the model draws grey pictures: it knows no colours")
            return Measuring(Grayscale(), 1, (height, width), of_model)
        case "upscale":
            factor = factor if factor is not None else 2
            if factor < 2 or height % factor or width % factor:
                raise UsageError(
                    f"factor={factor}: must be at least 2 and divide the model's {width} × {height} pixels"
                )
            small = (height // factor, width // factor)
            return Measuring(
                Downsample(factor), channels, small, f"the model's {width} × {height} over --factor {factor}"
            )
        case "deblur":
            return Measuring(GaussianBlur(sigma if sigma is not None else 1.0), channels, (height, width), of_model)
        case "outpaint":
            inside = window if window is not None else (height // 2, width // 2)
            return Measuring(Crop(inside, (height, width)), channels, inside, "as --window, rows × columns, says")
        case "custom":
            assert operator is not None
            measured = operator(torch.zeros(1, *shape))
            is_picture = measured.ndim == 4 and measured.shape[1] in (1, 3)
            size = (measured.shape[2], measured.shape[3]) if is_picture else None
            return Measuring(operator, measured.shape[1], size, f"as {type(operator).__name__} makes them")


def mask_of(mask: str, size: tuple[int, int], seed: int) -> Tensor:
    """What is to be filled in, ``(H, W)`` bool: by a word, or by a picture that is white there.

    Raises:
        UsageError: for what is neither, a picture of another size, or a mask that leaves nothing, or all, to be filled
            in.
        ValueError: as :func:`~diffusion_lightning.inverse.masks.missing_pixels` does.
    """
    if Path(mask).is_file():
        picture = read_pictures(Path(mask), 1, "mask")
        check_size(picture, size, "mask", "as the model's pictures")
        missing = next(iter(picture.values()))[0] > 0
    elif Path(mask).suffix and not mask.startswith("random:"):
        raise UsageError(f"mask={mask!r}: there is no such file: must be {MASKS}")
    else:
        missing = missing_pixels(mask, size, seed)
    if not missing.any() or missing.all():
        filled = "all" if missing.all() else "nothing"
        raise UsageError(f"mask={mask!r}: {filled} is to be filled in: must be a part of the picture, in white")
    return missing
