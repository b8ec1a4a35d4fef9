"""The real points that callbacks for points compare samples with."""

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from diffusion_lightning.callbacks.pictures import example_shape
from diffusion_lightning.training.module import ScoreModule


def held_out_points(callback: Callback, data: Any, module: ScoreModule, for_images: str) -> Tensor:
    """The held-out points ``(N, 2)`` of the data module; a ValueError if there are none, naming what to use instead."""
    points = getattr(data, "held_out", None)
    if isinstance(points, Tensor) and points.shape[1:] == (2,):
        return points
    raise ValueError(
        f"{type(callback).__name__} needs data with held-out points, held_out (N, 2), but an example of "
        f"{type(data).__name__} has shape {example_shape(module, data)}: use {for_images} for images"
    )
