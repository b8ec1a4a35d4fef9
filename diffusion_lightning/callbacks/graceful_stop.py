"""Graceful shutdown: SIGTERM and Ctrl-C end a training between two steps, with a checkpoint of the last one."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from diffusion_lightning.callbacks.checkpoints import LastCheckpoint, gradient_is_kept, save_last
from diffusion_lightning.messages import is_lost_contact
from diffusion_lightning.training.agreement import Agreement


class Stopped(BaseException):
    """Training has ended early because a signal asked for it.

    Attributes:
        signum: the signal.
        step: optimizer steps done.
        saved: whether a checkpoint of this step is on the disk.
        is_launched: whether this process was started by another one of the run, which reports for it.
    """

    def __init__(self, signum: int, step: int, saved: bool, is_launched: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step, self.saved, self.is_launched = signum, step, saved, is_launched


class GracefulStop(Callback):
    """Ends training between two optimizer steps when SIGTERM (preemption) or SIGINT (Ctrl-C) has come.

    ``last.ckpt`` is saved first, where the trainer has a callback that saves checkpoints. A signal to any process stops
    all of them after the same step, one later where there are several. While an epoch's pictures are drawn, when the
    last step is saved already or can be, it ends at once; a second Ctrl-C ends anything at once. Under SLURM the signal
    of Lightning's automatic requeueing is also answered between two steps, and after it the job goes on until SLURM
    ends it.

    Raises:
        Stopped: out of ``fit``, when it is done.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._received: int | None = None
        self._requeue: Any = None
        self._requeue_wanted = False
        self._in_step = False
        self._agreement: Agreement | None = None
        self._former: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agreement = Agreement(trainer)
        self._take_over(trainer)

    def _take_over(self, trainer: Trainer) -> None:
        if self._former or threading.current_thread() is not threading.main_thread():
            return  # Python hands signals to the main thread only
        self._trainer = trainer
        self._received, self._requeue_wanted, self._in_step = None, False, False
        # Lightning's agreement on its own SIGTERM, which does not come any more: one more wait for the device a step
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._take(signal.SIGTERM, self._on_signal)
        # the launching process passes it on: a terminal's Ctrl-C reaches all of them, a kill only one
        self._take(signal.SIGINT, signal.SIG_IGN if _is_launched(trainer) else self._on_signal)
        environment = trainer._accelerator_connector.cluster_environment
        requeue = getattr(environment, "requeue_signal", None)
        if requeue is not None and callable(former := signal.getsignal(requeue)):
            self._requeue = (former, requeue)
            self._take(requeue, self._on_requeue)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if gradient_is_kept(trainer):
            return
        assert self._agreement is not None
        wanted, self._requeue_wanted = self._requeue_wanted, False
        # a signal to one of them is for all
        stop, requeue = self._agreement.any(self._received is not None, wanted)
        saved = save_last(trainer) if stop or requeue else False
        if requeue and self._requeue is not None:
            lightnings, signum = self._requeue
            lightnings(signum, None)
        if stop:
            raise self._stopped(trainer, saved)
        self._in_step = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._in_step = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a signal in the epoch's last step, end before its pictures; several processes agree only on a step."""
        if self._received is not None and trainer.world_size == 1:
            self._leave_if_nothing_is_lost(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # not from the signal's handler: whatever it came upon is done with only now
        if isinstance(exception, Stopped):
            exception.saved |= any([callback.save_kept(trainer) for callback in _last_checkpoints(trainer)])
        told = self._received is not None
        self._give_back()
        if told and is_lost_contact(exception) and _is_launched(trainer):
            # the first process has left at once, as it was told to, where this one could not yet
            raise self._stopped(trainer, saved=False) from exception

    def _leave_if_nothing_is_lost(self, trainer: Trainer) -> None:
        last = _last_checkpoints(trainer)
        if not self._in_step and any(callback.loses_nothing(trainer) for callback in last):
            raise self._stopped(trainer, saved=any(callback.holds_all_training(trainer) for callback in last))

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        trainer = self._trainer
        assert trainer is not None
        launcher = trainer.strategy.launcher
        if self._received is not None:
            if signum == signal.SIGINT:
                if launcher is not None:
                    launcher.kill(signal.SIGKILL)  # type: ignore[attr-defined]
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self._received = signum
        if launcher is not None:
            launcher.kill(signal.SIGTERM)  # type: ignore[attr-defined]
        self._leave_if_nothing_is_lost(trainer)
        again = "; Ctrl-C again leaves at once" if signum == signal.SIGINT else ""
        rank_zero_info(f"\n{signal.Signals(signum).name}: stopping after this step{again}")

    def _on_requeue(self, signum: int, frame: FrameType | None) -> None:
        self._requeue_wanted = True

    def _stopped(self, trainer: Trainer, saved: bool) -> Stopped:
        signum = self._received or signal.SIGTERM  # another process's, which told this one
        return Stopped(signum, trainer.global_step, saved, _is_launched(trainer))

    def _take(self, signum: int, handler: Any) -> None:
        self._former[signum] = signal.signal(signum, handler)

    def _give_back(self) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        if self._former and self._trainer is not None:
            vars(self._trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)
        self._former.clear()


def _last_checkpoints(trainer: Trainer) -> list[LastCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]


def _is_launched(trainer: Trainer) -> bool:
    """Whether this process was started by Lightning, in another process of the run."""
    environment = trainer._accelerator_connector.cluster_environment
    return not environment.creates_processes_externally and trainer.local_rank > 0
