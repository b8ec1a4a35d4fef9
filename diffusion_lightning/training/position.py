"""The resume state: where a run stands between two steps, and how Lightning's loops go on as if they never stopped.

Lightning's own restart was made for the ends of epochs: in the middle of one it begins the data anew, and what was
still due when the checkpoint was saved (a validation, the pictures of the epoch) is left out or done twice, depending
on the hook that saved. So a checkpoint of ours says where it stands in numbers that do not depend on the hook, and
before the first batch of a resumed run the loops' counters are set by them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import RestartStage as BatchesRestart
from lightning.pytorch.utilities import rank_zero_warn

from diffusion_lightning.data.order import BatchOrder

# RestartStage of the evaluation loop; the training loop's has no such member
_MID_EVALUATION = "restarted_mid_evaluation"


@dataclass(frozen=True)
class Position:
    """After ``batch`` batches of the epoch that follows ``epoch`` complete ones.

    Where ``batch`` is all of an epoch's batches, what follows its last step (validation, samples) is still to be done.

    Attributes:
        epoch: epochs that are complete, with all that follows their last step.
        batch: batches of the next epoch that have been trained on, on each process.
        batches: those of all epochs together.
        examples: per batch, over all processes; 0 if not known.
        world_size: number of processes.
    """

    epoch: int
    batch: int
    batches: int
    examples: int
    world_size: int

    @classmethod
    def of(cls, trainer: Trainer) -> "Position":
        """Where a training run stands, asked from any hook between the end of a step and the beginning of the next."""
        fit = trainer.fit_loop
        epochs, batches = fit.epoch_progress.current, fit.epoch_loop.batch_progress
        epoch, batch = epochs.processed, batches.current.processed  # type: ignore[attr-defined]
        if epochs.ready == epoch:  # no epoch is begun, or this one has been counted as processed already
            if batch > 0 and not batches.is_last_batch:
                epoch -= 1  # max_steps cut it short: a longer run goes on in the middle of it
            else:
                batch = 0
        per_process = getattr(trainer.datamodule, "batch_size", 0)  # type: ignore[attr-defined]
        total = batches.total.processed  # type: ignore[attr-defined]
        return cls(epoch, batch, total, per_process * trainer.world_size, trainer.world_size)

    def write(self, checkpoint: dict[str, Any]) -> dict[str, int]:
        """This position as plain numbers; the counters of epochs that a checkpoint has already are made to agree."""
        loops = checkpoint["loops"]["fit_loop"]
        for tracker in loops["epoch_progress"].values():
            tracker.update(dict.fromkeys(tracker, self.epoch))
        checkpoint["epoch"] = max(0, self.epoch - (self.batch == 0))  # by Lightning's custom, that of the last step
        return asdict(self)

    def run_steps(self, trainer: Trainer, step: int) -> float:
        """Optimizer steps of the whole run: the ``step`` that are done, and those from here to where it is to end.

        Without any other number of examples or processes in between, `Trainer.estimated_stepping_batches`.
        """
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        if trainer.max_epochs in (None, -1) or batches == math.inf:
            total = math.inf
        else:
            per_epoch = math.ceil(batches / accumulated)
            begun = math.ceil(min(self._batch_here(trainer), batches) / accumulated)
            total = step + max((trainer.max_epochs - self.epoch) * per_epoch - begun, 0)  # type: ignore[operator]
        return min(total, trainer.max_steps) if trainer.max_steps != -1 else total

    def _batch_here(self, trainer: Trainer) -> int:
        """How many batches of this trainer's size are not more than those of the epoch that have been trained on."""
        examples = getattr(trainer.datamodule, "batch_size", 0) * trainer.world_size  # type: ignore[attr-defined]
        return self.batch * self.examples // examples if examples and self.examples else self.batch

    def go_on(self, trainer: Trainer) -> None:
        """Set the counters of a resumed run, before its first batch, so that the next step is the one that was due.

        With another number of processes or another batch size the epoch goes on at the same example of its order, or
        just before it; a warning says so.
        """
        fit, batch, there = trainer.fit_loop, self.batch, trainer.num_training_batches
        examples = getattr(trainer.datamodule, "batch_size", 0) * trainer.world_size  # type: ignore[attr-defined]
        if examples and self.examples and (examples, trainer.world_size) != (self.examples, self.world_size):
            batch = self._batch_here(trainer)
            if batch == 0:
                place = f"epoch {self.epoch} begins"
            elif batch < there:
                place = f"epoch {self.epoch} goes on after batch {batch}" + f" of {there}" * (there < math.inf)
            else:
                place = f"of epoch {self.epoch} no batch is left, for it has {there}, and what follows the last is due"
            rank_zero_warn(
                f"resumed with {_counted(trainer.world_size, 'process')} and {_counted(examples, 'example')} per step, "
                f"before it were {self.world_size} and {self.examples}: the order of the data changes, and {place}"
            )
        batch = int(min(batch, there))

        for loader in fit._combined_loader.flattened:  # type: ignore[union-attr]
            if isinstance(order := getattr(loader, "sampler", None), BatchOrder):
                order.set_epoch(self.epoch)
                order.start_batch = batch

        steps, loop = trainer.global_step, fit.epoch_loop
        for of_all in (fit, loop, loop.val_loop):
            of_all._restarting = False
            of_all.reset_restart_stage()
        _set(fit.epoch_progress.total, self.epoch)
        _set(fit.epoch_progress.current, self.epoch)
        _set(loop.batch_progress.total, self.batches)
        _set(loop.batch_progress.current, batch)
        loop.batch_progress.is_last_batch = batch == there
        loop._batches_that_stepped = steps
        if batch == 0:
            return
        # the loop now keeps its counters instead of beginning an epoch; in return it counts one step, wherever the
        # gradient of the last batch was not kept for the next
        loop._restarting = True
        loop._restart_stage = BatchesRestart.NONE
        loop._batches_that_stepped -= not loop._should_accumulate()
        if batch == there:
            fit._data_fetcher.done = True  # type: ignore[union-attr]
            if loop._should_check_val_fx(fit._data_fetcher):  # type: ignore[arg-type]
                loop.val_loop._restart_stage = _MID_EVALUATION
                loop._batches_that_stepped -= 1  # after the validation it counts the step again


def _set(tracker: Any, value: int) -> None:
    vars(tracker).update(dict.fromkeys(vars(tracker), value))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
