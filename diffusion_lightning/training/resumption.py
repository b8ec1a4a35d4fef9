"""What a checkpoint holds of a run beside its weights, and how the run goes on from it."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from diffusion_lightning.training.callback_states import keep_loadable, keep_settings, stops_when_it_may
from diffusion_lightning.training.checkpoint_file import KEY
from diffusion_lightning.training.position import Position
from diffusion_lightning.training.resume import Makers, is_of_another_class, lay_over
from diffusion_lightning.training.schedule import misfit, overruled
from diffusion_lightning.training.sharding import number_as_in
from diffusion_lightning.version import __version__

if TYPE_CHECKING:
    from diffusion_lightning.training.module import ScoreModule


def write_run(module: "ScoreModule", checkpoint: dict[str, Any]) -> None:
    """Add the EMA, the package's version, the loggers' run ids, and where the run stands; every process must do so."""
    if "callbacks" in checkpoint:
        checkpoint["callbacks"] = keep_loadable(checkpoint["callbacks"])
    checkpoint["ema"] = module.ema.state_dict()
    if module.device_mesh is None:  # FSDP has done it, and only on the process that writes the file
        for state in checkpoint.get("optimizer_states", []):
            number_as_in(module, state)
    checkpoint[KEY] = {
        "version": __version__,
        "run_ids": {type(logger).__name__: logger.version for logger in module.loggers},
        "position": Position.of(module.trainer).write(checkpoint),
        "draws_own_rows": module.draws_own_rows,
        "skipped_steps": module.skipping.total,
        "skipped_in_a_row": module.skipping.in_a_row,
        "epoch_losses": module.epoch_loss.write(module),
        "metrics": {name: value.item() for name, value in module.trainer.callback_metrics.items()},
        "class_names": module.class_names,
        "vector_names": module.vector_names,
        "class_counts": module.class_counts,
        "groups": asdict(module.groups) if module.groups is not None else None,
        "used": module.watchers.write(module.trainer),
    }


def metrics_of(checkpoint: Mapping[str, Any]) -> set[str]:
    """The names of the metrics that a checkpoint's run has logged, or its callbacks wait for."""
    waited_for = re.findall(r"'monitor': '([^']+)'", " ".join(checkpoint.get("callbacks") or {}))
    return {*checkpoint[KEY].get("metrics", {}), *waited_for}


class Resumption:
    """Keeps what a checkpoint says of its run, from when it is read until the first batch is due."""

    def __init__(self) -> None:
        self._read: dict[str, Any] = {}

    def forget(self) -> None:
        """Begin a training with nothing to go on from."""
        self._read = {}

    def read(self, module: "ScoreModule", checkpoint: dict[str, Any]) -> None:
        """Take from a checkpoint what its run goes on with; Lightning is not shown what would undo options.

        Args:
            module: that goes on.
            checkpoint: whose states Lightning is about to restore; changed in place.
        """
        saved = checkpoint["hyper_parameters"]
        keep_settings(module.trainer, checkpoint)
        self._read = {
            **checkpoint[KEY],
            "hyper_parameters": saved,
            "changes": module.changes(checkpoint),
            "lr_schedulers": checkpoint["lr_schedulers"],
        }
        if is_of_another_class(saved["lr_scheduler"], module.hparams["lr_scheduler"]):
            checkpoint["lr_schedulers"] = []  # Lightning would write the one's state into the other
        if "position" not in self._read:
            rank_zero_warn(
                f"the checkpoint is of version {self._read['version']}, which did not write down where in an "
                "epoch it stood: training goes on with it, but not bit for bit as if it had not stopped"
            )

    def go_on(self, module: "ScoreModule") -> None:
        """Go on exactly where the checkpoint was saved, but for what is asked for otherwise now; without one, begin."""
        trainer, read = module.trainer, self._read
        run_steps = trainer.estimated_stepping_batches
        if "position" in read:
            position = Position(**read["position"])
            position.go_on(trainer)
            run_steps = position.run_steps(trainer, module.global_step)
            # the release of 0.2.0 did not write down how many were in a row
            module.skipping.begin(read["skipped_steps"], read.get("skipped_in_a_row", 0))
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in read["metrics"].items()})
            module.epoch_loss.go_on(read["epoch_losses"], module)
            module.watchers.go_on(trainer, read.get("used", []))
            trainer.should_stop |= stops_when_it_may(trainer)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if read:
            self._lay_over(module, schedulers[0] if schedulers else None, run_steps)
        self._read = {}
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for scheduler in schedulers:
                for message in filter(None, (misfit(scheduler, run_steps), overruled(scheduler))):
                    rank_zero_warn(message)

    def _lay_over(self, module: "ScoreModule", scheduler: Any, run_steps: float) -> None:
        """Let what is asked for now be done by the restored optimizer and scheduler, with one line for each change."""
        optimizer, saved = module.optimizers(use_pl_optimizer=False), self._read["hyper_parameters"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        states, own = self._read["lr_schedulers"], Makers(module.optimizer, module.lr_scheduler)
        step = module.global_step
        lines = lay_over(optimizer, scheduler, states[0] if states else None, saved, own, run_steps, step)
        changed = [f"model.{change.name} was {change.was}, is {change.now}" for change in self._read["changes"]]
        for line in changed + lines:
            rank_zero_info(f"resumed: {line} from step {step} on")


def is_resuming(module: "ScoreModule") -> bool:
    """Whether a checkpoint is read for a training to go on from it, and not for its weights alone."""
    return module._trainer is not None and module._trainer.state.fn == TrainerFn.FITTING
