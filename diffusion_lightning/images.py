"""From the model's range back to pictures."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.utils import make_grid

if TYPE_CHECKING:  # loaded only where something is plotted
    from matplotlib.figure import Figure


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit levels: round(127.5·(x + 1)), values outside limited; uint8, shape of ``x``."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(x: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` in [-1, 1] as one picture, as square as B allows; uint8 ``(3, H', W')``."""
    return make_grid(to_uint8(x), nrow=math.ceil(math.sqrt(len(x))), padding=2)


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
    return figure_picture(figure)


def write_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 picture ``(C, H, W)``, C = 1 or 3, as a whole file or not at all; folders are made."""
    from torchvision.transforms.functional import to_pil_image

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    to_pil_image(picture.cpu()).save(part, format="png")
    part.replace(path)
