"""Samples as single pictures, written by each process as `lightning predict` draws them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from diffusion_lightning.callbacks.pictures import example_shape, run_folder
from diffusion_lightning.images import is_picture, to_uint8, write_png
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.module import ScoreModule


class SampleWriter(BasePredictionWriter):
    """Writes sample i of ``lightning predict`` as ``<i>.png``, whatever process drew it.

    Args:
        folder: where; ``predictions`` in the run's folder if left out.

    Raises:
        ValueError: when predicting starts, if the samples are no images of 1 or 3 channels, or the folder already holds
            pictures.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._to = Path()
        self._broken = self._drawn = 0  # by this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ScoreModule)
        self._broken = self._drawn = 0
        if stage == "predict":
            shape = example_shape(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
            if shape is not None and not is_picture(shape):
                raise ValueError(
                    f"SampleWriter writes images (C, H, W) of 1 or 3 channels, but an example of this model has shape "
                    f"{shape}: use lightning sample --output samples.npz"
                )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._to = Path(self.folder) if self.folder is not None else run_folder(trainer) / "predictions"
        # asked on one process, before any of them writes
        taken = trainer.strategy.broadcast(any(self._to.glob("*.png")))
        if taken:
            raise ValueError(f"folder={str(self._to)!r} already holds pictures: give SampleWriter another folder")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self._broken += count_broken(prediction)
        self._drawn += len(prediction)
        for index, picture in zip(batch.tolist(), to_uint8(prediction), strict=True):
            write_png(picture, self._to / f"{index:06d}.png")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = torch.tensor([self._broken, self._drawn], device=pl_module.device)
        broken, drawn = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # type: ignore[union-attr]
        warn_of_broken(broken, drawn)
