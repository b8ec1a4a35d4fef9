"""The checkpoint to keep: that of a run's best epoch.

It is saved before the first batch that follows, as the one to resume from.
"""

import math
import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from diffusion_lightning.callbacks.fid import FIDCallback
from diffusion_lightning.training.callback_states import follow_move


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/epoch=….ckpt``: the epoch with the lowest FID, or the lowest ``val/loss`` without FID.

    An epoch whose value is not finite is never taken for the best.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="epoch={epoch:04d}",
            auto_insert_metric_name=False,
            monitor="val/loss",
            mode="min",
            enable_version_counter=False,
        )
        self._measured: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FIDCallback):
                self.monitor = callback.name
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        follow_move(trainer, checkpoint)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._save_if_best(trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: epochs are compared."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: FID comes later."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # FID is not measured every epoch, and ModelCheckpoint takes a metric that is not there yet for a mistake
        if self.monitor not in trainer.callback_metrics or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # nan is no value to compare, and the first of a run would be kept as its best
        if math.isfinite(trainer.callback_metrics[self.monitor]):
            self._measured = self._monitor_candidates(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_if_best(trainer)

    def state_dict(self) -> dict[str, Any]:
        # what is still to be compared, too, where the other checkpoint is saved first
        return {**super().state_dict(), "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._measured = state_dict.get("measured")

    def _save_if_best(self, trainer: Trainer) -> None:
        if self._measured is not None:
            measured, self._measured = self._measured, None
            self._save_topk_checkpoint(trainer, measured)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # not before the better one is there: the disk may have been full
        return os.path.exists(current) and super()._should_remove_checkpoint(trainer, previous, current)
