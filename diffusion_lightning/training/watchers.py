"""Monitored metrics: a ``ReduceLROnPlateau``, Lightning's ``EarlyStopping`` and ``ModelCheckpoint``.

Each of them waits until its metric is measured, and uses a value once. Lightning's own end the training where a metric
is not there yet, and take one that is measured every fourth epoch for measured anew in each.
"""

import difflib
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

PLATEAU = "model.lr_scheduler"
"""Who the schedule is, among those that watch."""

_OURS = ("diffusion_lightning.", "lightning.")


class Watchers:
    """Who watches which metric, and whose newest value each of them has used.

    Args:
        monitor: of the module's ``ReduceLROnPlateau``, if it has one.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.plateau = monitor
        self.watched: dict[str, str] = {}
        self._used: dict[str, Tensor] = {}
        self._told: set[str] = set()

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Look who watches in this training, and make Lightning's callbacks wait.

        Raises:
            ValueError: if a metric can never come, as nothing that could log it is there.
        """
        self.watched = {} if self.plateau is None else {PLATEAU: self.plateau}
        self._used, self._told = {}, set()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor: Any = getattr(callback, "monitor", None)
            if isinstance(callback, EarlyStopping):
                method: Any = "_run_early_stopping_check"
            elif isinstance(callback, ModelCheckpoint) and monitor not in (None, "epoch", "step"):
                method = "_save_topk_checkpoint"
            else:
                continue
            self.watched[callback.state_key] = monitor
            setattr(callback, method, partial(self._when_new, callback, getattr(type(callback), method)))
        # a dry run leaves out what draws samples, and with it their metrics
        for who in [] if trainer.fast_dev_run else self._told_of(trainer):  # type: ignore[attr-defined]
            _check(_short(who), self.watched[who], trainer, module)

    def take(self, who: str, trainer: Trainer) -> Tensor | None:
        """The newest value of the metric that ``who`` watches; None if there is none that it has not had."""
        value, used = trainer.callback_metrics.get(self.watched[who]), self._used.get(who)
        if value is None or _is_same(value, used):
            return None
        self._used[who] = value
        return value

    def tell_who_waits(self, trainer: Trainer) -> None:
        """Warn, once for each, of those whose metric has not come although everything has run that may measure it."""
        periods = [getattr(c, "every_n_epochs", 1) for c in trainer.callbacks]  # type: ignore[attr-defined]
        periods.append(trainer.check_val_every_n_epoch or 1)
        epochs = trainer.current_epoch + 1
        if epochs < max(period for period in periods if isinstance(period, int)):
            return
        for who in self._told_of(trainer):
            monitor = self.watched[who]
            if monitor not in trainer.callback_metrics and who not in self._told:
                self._told.add(who)
                known = ", ".join(sorted(trainer.callback_metrics))
                rank_zero_warn(
                    f"{_short(who)}: monitor={monitor!r} has not been logged in {epochs} epochs; it is waited for, and "
                    f"nothing is done until then. Logged are {known}"
                )

    def write(self, trainer: Trainer) -> list[str]:
        """Who has had the newest value of its metric."""
        metrics = trainer.callback_metrics
        return [who for who, used in sorted(self._used.items()) if _is_same(metrics.get(self.watched[who]), used)]

    def go_on(self, trainer: Trainer, used: list[str]) -> None:
        """Take back what :meth:`write` has written, once the trainer's metrics are those of then."""
        metrics = trainer.callback_metrics
        self._used = {who: metrics[self.watched[who]] for who in used if self.watched.get(who) in metrics}

    def step_plateaus(self, trainer: Trainer) -> None:
        """Step a ``ReduceLROnPlateau`` at an epoch's end, if its metric is new.

        Lightning would step it after this epoch's checkpoint, which would then lack the step.
        """
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # the epoch was cut short by max_steps
            return
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            is_plateau = isinstance(scheduler, ReduceLROnPlateau)
            if is_plateau and (value := self.take(PLATEAU, trainer)) is not None:
                scheduler.step(value)  # type: ignore[arg-type]

    def _told_of(self, trainer: Trainer) -> list[str]:
        """Who of them the user has asked for: our own best checkpoint is there without being asked for."""
        ours = [c.state_key for c in trainer.callbacks if type(c).__module__.startswith(_OURS[0])]  # type: ignore[attr-defined]
        return [who for who in self.watched if who not in ours]

    def _when_new(self, callback: Any, method: Any, trainer: Trainer, *args: Any) -> None:
        new = self.take(callback.state_key, trainer) is not None
        # where every checkpoint is kept, none is compared
        all_are_kept = getattr(callback, "save_top_k", 0) == -1 and callback.monitor in trainer.callback_metrics
        if new or all_are_kept:
            method(callback, trainer, *args)


def _is_same(value: Tensor | None, other: Tensor | None) -> bool:
    # Lightning hands out new tensors of the same memory; what is measured anew has memory of its own
    return value is not None and other is not None and value.data_ptr() == other.data_ptr()


def _short(who: str) -> str:
    return who.partition("{")[0]


def _check(who: str, monitor: str, trainer: Trainer, module: LightningModule) -> None:
    """Raise a ValueError if nothing can log this metric; warn if the user's own part might, and it looks misspelt."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    known = {"train/loss_step", "train/loss_epoch", "train/skipped_steps"}
    # those that measure; others have a name, too, that of their pictures
    known |= {
        str(callback.name) for callback in callbacks if hasattr(callback, "evaluate") and hasattr(callback, "name")
    }
    if trainer.enable_validation:
        known.add("val/loss")
    if monitor in known or (monitor.startswith("lr-") and any(isinstance(c, LearningRateMonitor) for c in callbacks)):
        return
    near = difflib.get_close_matches(monitor, known, n=1)
    if monitor == "val/loss":
        hint = ": there is no validation (trainer.limit_val_batches, or the data holds nothing out)"
    else:
        hint = f" (did you mean {near[0]}?)" if near else ""
    own = [part for part in (*callbacks, module) if not type(part).__module__.startswith(_OURS)]
    if not own:
        raise ValueError(f"{who}: monitor={monitor!r} is never logged{hint}: must be one of {', '.join(sorted(known))}")
    if hint:
        names = ", ".join(sorted({type(part).__name__ for part in own}))
        rank_zero_warn(f"{who}: monitor={monitor!r} is not logged{hint}, unless by {names}; it is waited for")
