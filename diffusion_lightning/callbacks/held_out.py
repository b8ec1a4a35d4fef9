"""The real points that callbacks for points compare samples with."""

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from diffusion_lightning.callbacks.pictures import example_shape
from diffusion_lightning.module import ScoreModule


def held_out_points(callback: Callback, trainer: Trainer, module: ScoreModule, for_images: str) -> Tensor:
    """The held-out points ``(N, 2)`` of the data module; a ValueError if there are none, naming what to use instead."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    points = getattr(data, "held_out", None)
    if isinstance(points, Tensor) and points.shape[1:] == (2,):
        return points
    raise ValueError(
        f"{type(callback).__name__} needs data with held-out points, held_out (N, 2), but an example of "
        f"{type(data).__name__} has shape {example_shape(trainer, module)}: use {for_images} for images"
    )
