"""From the model's range back to pictures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

if TYPE_CHECKING:  # loaded only where something is plotted
    from matplotlib.figure import Figure


SHOWN, EXTENT = 0.99, 1.5
"""The part of a state's values that may reach this far; samples overshoot [-1, 1] a little, noise by more."""


PADDING = 2
"""Pixels between the images of a grid, and around them."""


CAPTION = "Description"
"""The name, one of the PNG standard's, of the text in a file that says what its picture shows."""


FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Of pictures, by the suffixes of their files."""


def is_picture(shape: Sequence[int]) -> bool:
    """Whether an example of this shape is one that can be shown: ``(C, H, W)``, grey or in colour."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit levels: round(127.5·(x + 1)), values outside limited; uint8, shape of ``x``.

    An image ``(C, H, W)`` with a value that is not finite becomes a dark tile with a bright cross, which nobody takes
    for a picture.
    """
    levels = x.float().add(1).mul(127.5).round().nan_to_num(0.0).clamp(0, 255).to(torch.uint8)
    if x.ndim < 3:
        return levels
    broken = ~x.isfinite().flatten(-3).all(-1)
    return torch.where(broken[..., None, None, None], _crossed(x.shape[-2], x.shape[-1], x.device), levels)


def _crossed(height: int, width: int, device: torch.device) -> Tensor:
    """The tile that stands for an image that is none; uint8 ``(H, W)``."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    distance = torch.minimum((y - x).abs(), (y + x).abs())
    return torch.where(distance < 3 / max(height, width), 255, 64).to(device, torch.uint8)


def visible(states: Tensor) -> Tensor:
    """States on the way from noise to images, ``(…, C, H, W)``, in a range in which noise looks like noise; same shape.

    Each is divided by max(1, q/1.5), where 99 % of its values lie in [-q, q]. So an image about [-1, 1] stays as it is,
    and Gaussian noise of a standard deviation above 0.58 is shown as such of 0.58, not as black and white. The standard
    deviation could not tell the two apart: VP noise and a picture of black and white both have 1.
    """
    values = states.float().flatten(-3)
    extent = values.abs().kthvalue(math.ceil(SHOWN * values.shape[-1]), dim=-1, keepdim=True).values
    return (values / (extent / EXTENT).clamp(min=1)).reshape(states.shape)


def image_grid(x: Tensor, across: int | None = None) -> Tensor:
    """Images ``(B, C, H, W)``, C = 1 or 3, in [-1, 1] as one picture; uint8 ``(3, H', W')``.

    A single image is the picture itself; several stand :data:`PADDING` black pixels apart.

    Args:
        x: the images.
        across: how many stand in a row; as square as B allows if left out.
    """
    levels = to_uint8(x).expand(-1, 3, -1, -1)
    count, _, height, width = levels.shape
    if count == 1:
        return levels[0].contiguous()
    across = math.ceil(math.sqrt(count)) if across is None else across
    down = math.ceil(count / across)
    row, column = height + PADDING, width + PADDING
    grid = levels.new_zeros(3, down * row + PADDING, across * column + PADDING)
    for number, image in enumerate(levels):
        top, left = PADDING + number // across * row, PADDING + number % across * column
        grid[:, top : top + height, left : left + width] = image
    return grid


def figure_picture(figure: "Figure") -> Tensor:
    """A matplotlib figure as a picture, without pyplot, which keeps global state; uint8 ``(3, H, W)``."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1).contiguous()


def points_picture(x: Tensor) -> Tensor:
    """Points ``(B, 2)`` as a scatter plot; uint8 ``(3, H', W')``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    panel.set_aspect("equal", adjustable="datalim")
    panel.scatter(x[:, 0].float(), x[:, 1].float(), s=6, color="tab:red", alpha=0.6, linewidths=0)
    if broken := int((~x.isfinite().all(1)).sum()):
        panel.set_title(f"{broken} of {len(x)} points are not finite, and not shown")
    return figure_picture(figure)


def write_png(picture: Tensor, path: Path, caption: str = "") -> None:
    """Write a uint8 picture ``(C, H, W)``, C = 1 or 3, as a whole file or not at all; folders are made.

    Args:
        picture: uint8 ``(C, H, W)``.
        path: of the file.
        caption: what it shows, which the file holds as its ``Description`` (:func:`caption_of`).
    """
    texts = PngInfo()
    if caption:
        texts.add_itxt(CAPTION, caption)
    _write_image(picture, path, "png", pnginfo=texts)


def caption_of(path: Path) -> str:
    """What a picture shows, as its file says; empty if it does not, or cannot be read."""
    try:
        with Image.open(path) as image:
            return str(image.info.get(CAPTION, ""))
    except (OSError, SyntaxError, ValueError):
        return ""


def write_picture(picture: Tensor, path: Path, scale: int = 1) -> None:
    """As :func:`write_png`, in the format of the path's suffix, and enlarged.

    Args:
        picture: uint8 ``(C, H, W)``.
        path: of the file, with a suffix of ``FORMATS``; WebP is lossless.
        scale: the side of the square that each pixel becomes.
    """
    format = FORMATS[path.suffix.lower()]
    of_format: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    _write_image(
        picture.repeat_interleave(scale, -1).repeat_interleave(scale, -2), path, format, **of_format.get(format, {})
    )


def write_gif(pictures: Sequence[Tensor], path: Path, seconds: Sequence[float]) -> None:
    """Write an endless animation as a whole file or not at all; folders are made.

    Grey pictures are exact; in others each has the 256 colours that suit it best.

    Args:
        pictures: uint8 ``(3, H, W)`` each.
        path: of the file.
        seconds: how long each is shown, in steps of 10 ms.
    """
    is_grey = all(bool((picture == picture[:1]).all()) for picture in pictures)
    first, *others = (_to_pillow(picture[:1] if is_grey else picture) for picture in pictures)
    settings: dict[str, Any] = {"duration": [round(1000 * time) for time in seconds], "loop": 0}
    # to save space Pillow would write what has not changed as transparent, and for that colour give up one of 256
    settings["optimize"] = False
    _write_whole(path, lambda part: first.save(part, format="gif", save_all=True, append_images=others, **settings))


def _to_pillow(picture: Tensor) -> Image.Image:
    levels = picture.cpu().permute(1, 2, 0)
    return Image.fromarray(levels[..., 0].numpy() if levels.shape[-1] == 1 else levels.numpy())


def _write_image(picture: Tensor, path: Path, format: str, **settings: Any) -> None:
    image = _to_pillow(picture)
    _write_whole(path, lambda part: image.save(part, format=format, **settings))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
