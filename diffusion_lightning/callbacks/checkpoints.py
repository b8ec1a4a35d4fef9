"""The checkpoint to resume from: where a run stands.

It is saved before the first batch that follows, when all that belongs to the step before is done and written down: its
losses are logged, and at the end of an epoch its validation and its pictures too. It is also saved between an epoch's
last step and its validation and pictures, which may take long; if it was saved a short while ago it is kept in memory
instead, and written if a signal or an error ends the training meanwhile.
"""

import copy
import math
import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from diffusion_lightning.callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint  # its place up to 0.2.0
from diffusion_lightning.callbacks.pictures import is_due
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.loggers.run_logger import RunLogger
from diffusion_lightning.training.agreement import Agreement
from diffusion_lightning.training.callback_states import follow_move
from diffusion_lightning.training.checkpoint_file import LOGGED
from diffusion_lightning.training.position import Position

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt``, where the run stands, and the one before it, ``previous.ckpt``, should the disk
    damage the newest.

    It is saved before an epoch's pictures and after the epoch if it was not in the last ``every_minutes``; always after
    the first epoch of a start, which so finds out whether it can be, after an epoch that could not be saved, and at the
    end. What ends the training while pictures are drawn, a signal or an error, has it saved too.

    Args:
        every_n_train_steps: also save every so many optimizer steps.
        train_time_interval: also save every so much time, between epochs as in the middle of one; it then takes the
            place of ``every_minutes``, unless that is 0.
        every_minutes: that pass at least from a save to that of an epoch; 0 saves every epoch.

    Raises:
        ValueError: if ``every_n_train_steps`` is below 1, ``train_time_interval`` is not positive, or ``every_minutes``
            is negative or not finite.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_minutes: float = 5.0,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps}: must be at least 1")
        if train_time_interval is not None and train_time_interval <= timedelta(0):
            raise ValueError(f"train_time_interval={train_time_interval}: must be positive")
        if not 0 <= every_minutes < math.inf:
            raise ValueError(f"every_minutes={every_minutes}: must be finite and at least 0, which saves every epoch")
        super().__init__(filename="last", every_n_epochs=1, enable_version_counter=False)
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self.every_minutes = every_minutes
        self._agreement: Agreement | None = None
        self._begin()

    def _begin(self) -> None:
        self._saved: Position | None = None
        self._saved_time = time.monotonic()
        self._has_asked = False  # the other processes to save with this one
        self._is_on_disk = False  # what this start saved last
        self._kept: dict[str, Any] | None = None
        self._pictures_follow = False  # on the step that is just done
        self._has_more_to_log = False  # of the step that is being saved

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        follow_move(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()
        self._agreement = Agreement(trainer) if self.train_time_interval is not None else None
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(str(self.dirpath)).resolve()
        if self._saved is None and trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == folder:
            self._saved = Position.of(trainer)  # it is what was resumed from

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._kept = None
        if trainer.global_step == 0 or gradient_is_kept(trainer):
            return
        if self._is_due(trainer, after_epoch=batch_idx == 0):
            self.save(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """See whether to save before an epoch's pictures. At the end by ``max_steps`` nothing would go on with them."""
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        sampled = [c for c in trainer.callbacks if isinstance(c, SamplingCallback)]  # type: ignore[attr-defined]
        self._pictures_follow = whole and not last_step and any(is_due(trainer, c.every_n_epochs) for c in sampled)

    def _listen(self, trainer: Trainer) -> None:
        """Hear when all of a step is logged, before what follows it: of that Lightning tells no callback."""
        loop = trainer.fit_loop.epoch_loop
        go_on = loop.on_advance_end

        def on_advance_end(data_fetcher: Any) -> None:
            if self._pictures_follow:
                self._pictures_follow = False
                self._save_before_pictures(trainer)
            go_on(data_fetcher)

        loop.on_advance_end = on_advance_end  # type: ignore[method-assign]

    def _save_before_pictures(self, trainer: Trainer) -> None:
        self._has_more_to_log = True
        if self._is_due(trainer, after_epoch=True):
            self.save(trainer)
        else:
            self._kept = _in_memory(trainer)
        self._has_more_to_log = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the step has logged, where more follows, which a run that goes on from here logs again."""
        if self._has_more_to_log:
            runs = [logger for logger in trainer.loggers if isinstance(logger, RunLogger) and trainer.is_global_zero]
            checkpoint[LOGGED] = runs[0].row(trainer.global_step - 1) if runs else {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the epoch is not over."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the epoch's metrics are not written yet."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _stop_listening(trainer)
        # a limit of time may end it where a gradient waits for the next batch; then the one before stays
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or not gradient_is_kept(trainer):
            self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _stop_listening(trainer)
        self.save_kept(trainer)

    def holds_all_training(self, trainer: Trainer) -> bool:
        """Whether no batch has been trained on since ``last.ckpt`` was saved, or resumed from."""
        return self._saved is not None and self._saved.batches == Position.of(trainer).batches

    def loses_nothing(self, trainer: Trainer) -> bool:
        """Whether an exception may end training right here: all of it is saved, or will then be."""
        return self._kept is not None or self.holds_all_training(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save, unless it is; every process must ask. Without effect in a ``fast_dev_run``."""
        position = Position.of(trainer)
        if position == self._saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self._make_way(trainer)
        self._save_checkpoint(trainer, path)
        self.best_model_path = path
        self._saved_time, self._has_asked = time.monotonic(), False
        self._is_on_disk = not _has_failed(trainer)
        if self._is_on_disk:
            self._saved, self._kept = position, None

    def save_kept(self, trainer: Trainer) -> bool:
        """Save what is kept in memory, without the other processes: one of them may be what has failed.

        Returns:
            Whether there was any, and it is on the disk, as far as this process knows.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return False
        if trainer.is_global_zero:
            trainer.strategy.checkpoint_io.save_checkpoint(kept, self._make_way(trainer))
        return not _has_failed_here(trainer)

    def _is_due(self, trainer: Trainer, after_epoch: bool) -> bool:
        """Whether to save now; every process must ask."""
        steps, interval = self.every_n_train_steps, self.train_time_interval
        if steps is not None and trainer.global_step % steps == 0 and not self.holds_all_training(trainer):
            return True
        if after_epoch and (self.every_minutes == 0 or not self._is_on_disk):
            return True
        if interval is None and not after_epoch:
            return False
        pause = interval.total_seconds() if interval is not None else 60 * self.every_minutes
        is_time = time.monotonic() - self._saved_time >= pause
        # the processes' clocks differ, and all must save together
        if after_epoch:
            return trainer.strategy.broadcast(is_time)
        assert self._agreement is not None
        wanted = trainer.is_global_zero and is_time and not self._has_asked
        self._has_asked |= wanted
        return self._agreement.any(wanted)[0]

    def _make_way(self, trainer: Trainer) -> str:
        """Where the newest goes, after the one that is there has become the one before."""
        path = Path(str(self.dirpath)) / LAST
        if trainer.is_global_zero and path.is_file():
            keep_as(path, path.with_name(PREVIOUS))
        return str(path)


def save_last(trainer: Trainer) -> bool:
    """Save ``last.ckpt`` by the trainer's LastCheckpoint, or else beside the checkpoints of its other callbacks.

    Returns:
        Whether it is there; never without any callback that saves checkpoints.
    """
    saving = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath is not None]
    for callback in saving:
        if isinstance(callback, LastCheckpoint):
            callback.save(trainer)
            return callback.holds_all_training(trainer)
    if saving:
        trainer.save_checkpoint(Path(str(saving[0].dirpath)) / LAST)
    return bool(saving) and not _has_failed(trainer)


def gradient_is_kept(trainer: Trainer) -> bool:
    """Whether the next batch's gradient will be added to one that is there, which no checkpoint holds."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return done % trainer.accumulate_grad_batches != 0


def _stop_listening(trainer: Trainer) -> None:
    vars(trainer.fit_loop.epoch_loop).pop("on_advance_end", None)


def _in_memory(trainer: Trainer) -> dict[str, Any]:
    """The checkpoint of now, in the process that writes; every process must ask.

    Nothing changes it before the next step: it has copies of the weights, which the averaged ones take the place of
    while pictures are drawn, and of the callbacks' states. What only a step changes is not copied.
    """
    with trainer.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if not trainer.is_global_zero:
            return {}
        weights = {
            name: value.to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in checkpoint.pop("state_dict").items()
        }
        shared = {name: checkpoint.pop(name) for name in ("ema", "optimizer_states") if name in checkpoint}
        return {**copy.deepcopy(checkpoint), **shared, "state_dict": weights}


def _has_failed(trainer: Trainer) -> bool:
    """Whether the last checkpoint could not be written, which only the process that writes knows."""
    return trainer.strategy.broadcast(_has_failed_here(trainer))


def _has_failed_here(trainer: Trainer) -> bool:
    return getattr(trainer.strategy.checkpoint_io, "has_failed", False)


def keep_as(path: Path, other: Path) -> None:
    """Give a file a second name, which stays when the first is written anew; nothing where the disk cannot do that."""
    temporary = other.with_name(other.name + ".part")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(other)
    except OSError:  # file systems without hard links: there is only the newest, as everywhere else
        pass
    with suppress(OSError):
        temporary.unlink(missing_ok=True)  # it is still there, too, where both names were of this file already
