"""The training bar: Lightning's, with images/s and the time left of the whole run."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from diffusion_lightning.progress import use_standard_error
from diffusion_lightning.training.module import STEP_LOSS

REFRESH = 0.2
"""Seconds from one drawing on a terminal to the next."""


class _RateAndTimeLeft(ProgressBar):
    """Shows the loss, images/s over all processes, and ``left``, the time until the last epoch ends.

    Both come from the time that training steps took in this epoch so far; validation and sampling are not in them.
    """

    reads_loss = True
    """Shows the newest loss by itself: what is logged for the bar, Lightning would wait for after every batch."""
    _interval = 0.0
    """Seconds from one drawing to the next, at least: to draw is to wait for the device's newest loss."""
    _drawn = -math.inf
    _epoch_start = 0.0
    _seconds_per_batch: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self._epoch_start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        now, is_last = time.monotonic(), trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self._seconds_per_batch = (now - self._epoch_start) / max(1, done)
        if is_last or now - self._drawn >= self._interval:
            self._drawn = now
            super().on_train_batch_end(trainer, *args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.training and (loss := trainer.callback_metrics.get(STEP_LOSS)) is not None:
            metrics = {STEP_LOSS: loss.item(), **metrics}
        if trainer.training and self._seconds_per_batch is not None:
            batch_size = getattr(trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
            metrics["images/s"] = f"{batch_size * trainer.world_size / self._seconds_per_batch:.0f}"
            done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
            left = self._batches_left(trainer, done)
            if left is not None:
                metrics["left"] = tqdm.format_interval(left * self._seconds_per_batch)
        return metrics

    @staticmethod
    def _batches_left(trainer: Trainer, done: int) -> float | None:
        """Batches until training ends by its number of epochs or steps; None if neither is set."""
        left = []
        if trainer.max_epochs not in (None, -1):
            assert trainer.max_epochs is not None
            left.append((trainer.max_epochs - trainer.current_epoch) * trainer.num_training_batches - done)
        if trainer.max_steps != -1:
            left.append((trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        return max(0, min(left)) if left else None


class TrainingProgressBar(_RateAndTimeLeft, TQDMProgressBar):
    """Plain text, for log files too: the loss, images/s over all processes, and ``left``, until the last epoch ends.

    Both come from the time that training steps took in this epoch so far; validation and sampling are not in them.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 50)
        self._interval = REFRESH if sys.stderr.isatty() else 0.0

    def init_validation_tqdm(self) -> Tqdm:
        """Lightning's; in a file not below the training's bar, for to move up again would be an escape code in it."""
        if sys.stdout.isatty() or self.trainer.state.fn == TrainerFn.VALIDATING:
            return super().init_validation_tqdm()
        shown = {"desc": self.validation_description, "bar_format": self.BAR_FORMAT, "file": sys.stdout}
        return Tqdm(position=0, leave=False, dynamic_ncols=True, disable=self.is_disabled, **shown)


class TerminalProgressBar(_RateAndTimeLeft, RichProgressBar):
    """As :class:`TrainingProgressBar`, by rich on a terminal; the bars of sampling and of metrics stand below it."""

    def __init__(self) -> None:
        use_standard_error()
        super().__init__(refresh_rate=10, console_kwargs={"stderr": True})
        self._interval = REFRESH
