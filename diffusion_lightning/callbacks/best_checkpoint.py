"""The checkpoint to keep: that of a run's best epoch.

It is saved before the first batch that follows, as the one to resume from.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from diffusion_lightning.callbacks.fid import FIDCallback
from diffusion_lightning.training.callback_states import follow_move
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.position import Position


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/epoch=….ckpt``: the epoch with the lowest FID, or the lowest ``val/loss`` without FID.

    An epoch whose value is not finite is never taken for the best. What is there of an epoch after the one that a run
    goes on from is of a part of the run that is now void: it is replaced if that epoch, trained again, is again the
    best; else it stays, and a warning names it.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="epoch={epoch:04d}",
            auto_insert_metric_name=False,
            monitor="val/loss",
            mode="min",
            enable_version_counter=False,
        )
        self._fid: FIDCallback | None = None
        self._measured: dict[str, Any] | None = None
        self._void: list[Path] | None = None  # files of epochs that are still to be trained again; None: not looked

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FIDCallback):
                self._fid = callback
                self.monitor = callback.name
        super().setup(trainer, pl_module, stage)

    def go_on_from(self, checkpoint: Mapping[str, Any], module: ScoreModule, data: Any) -> None:
        """Follow the FID, which in a run that goes on may have another name than at the start of it."""
        if self._fid is not None:
            self.monitor = self._fid.name

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        follow_move(trainer, checkpoint)
        own = [key for key in checkpoint.get("callbacks") or {} if key.partition("{")[0] == type(self).__qualname__]
        if own and self.state_key not in own and (was := re.search(r"'monitor': '([^']+)'", own[0])):
            rank_zero_info(
                f"BestCheckpoint: chosen by {self.monitor} from now on, before it was by {was[1]}: those values do not "
                "compare, and the best until then stays"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._void = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._void is None:
            done = Position.of(trainer).epoch if trainer.ckpt_path is not None else math.inf
            self._void = [path for path in Path(str(self.dirpath)).glob("epoch=*.ckpt") if _epoch(path) >= done]

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
        self._tell_of_void(math.inf)

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
            self._tell_of_void(int(measured["epoch"]))

    def _tell_of_void(self, epoch: float) -> None:
        """Warn of the files of epochs up to this one that no better one has taken the place of."""
        kept = {Path(path).name for path in self.best_k_models}
        for path in sorted(self._void or []):
            if _epoch(path) <= epoch and path.name not in kept and path.is_file():
                rank_zero_warn(
                    f"{path} is of the run before it was resumed from an earlier epoch; the best since then is "
                    f"{', '.join(sorted(kept)) or 'none'}. It stays: remove it if you do not want it"
                )
        self._void = [path for path in self._void or [] if _epoch(path) > epoch]

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # not before the better one is there: the disk may have been full
        return os.path.exists(current) and super()._should_remove_checkpoint(trainer, previous, current)


def _epoch(path: Path) -> int:
    """That of a file ``epoch=….ckpt``; -1 if it has another name."""
    number = path.stem.removeprefix("epoch=")
    return int(number) if number.isdecimal() else -1
