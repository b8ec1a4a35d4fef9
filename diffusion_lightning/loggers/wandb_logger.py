"""W&B that needs no account, continues its run on resume, and makes nobody wait for it."""

import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from diffusion_lightning.loggers.pictures import show_in_wandb
from diffusion_lightning.loggers.run_logger import RunLogger
from diffusion_lightning.loggers.wandb_file import next_step

PATIENCE = {
    "init_timeout": 20.0,  # s, for W&B to answer at the start
    "finish_timeout": 30.0,  # s, to upload what is left at the end
    "x_transaction_log_flush_interval": 1.0,  # s, after which what was logged is on disk
}
"""W&B's settings, unless an environment variable ``WANDB_…`` has them."""


class WandbLogger(loggers.WandbLogger):
    """Weights & Biases, online if the user is logged in, else offline with a line that says how to sync. Never asks.

    ``WANDB_MODE`` decides if it is set; ``online`` without a key is still offline, and so is a run whose key is refused
    or that gets no answer within 20 seconds. At the end it uploads for 30 seconds at most, after which the rest can be
    synced from the disk; ``WANDB_INIT_TIMEOUT`` and ``WANDB_FINISH_TIMEOUT`` set other limits. The git commit that W&B
    records is that of the working directory, wherever the run's folder lies.

    The optimizer step is W&B's own step, with one row each. A row is given away when it is complete, that is with the
    first value of the next step, or at the end. A resumed run gives the rows that W&B has not got, and no other again.

    A run that an agent of a sweep starts belongs to the agent's project, and has the id that the agent gave it.

    Args:
        project: in which the run appears; ``WANDB_PROJECT`` if left out, else ``diffusion_lightning``.
        name: of the run; W&B invents one if left out.
        group: of runs that belong together.
        tags: of the run.
        notes: of the run.
        entity: user or team; the key's owner if left out.
        id: of the run, to continue one; a resumed checkpoint brings its own. ``WANDB_RUN_ID`` if left out.
        save_dir: where the files go; the run's folder if left out.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        entity: str | None = None,
        id: str | None = None,
        save_dir: str | None = None,
    ) -> None:
        super().__init__(
            name=name, save_dir=save_dir or ".",
            project=project or os.environ.get("WANDB_PROJECT") or "diffusion_lightning",
            id=id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            group=group, tags=list(tags) if tags is not None else None, notes=notes, entity=entity,
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever its value
        self._has_folder = save_dir is not None
        self._run: RunLogger | None = None
        self._is_continued = False
        self._way: str | None = None
        self._row: dict[str, Any] = {}
        self._step = 0
        self._first_step = 0

    def belong_to(self, run: RunLogger, run_id: str | None) -> None:
        """Take the run's folder and name where the user gave none, and the id of the W&B run that is continued.

        The folder is asked for when the first thing is logged: a run that fails before leaves none behind.
        """
        self._run = run
        if run_id is not None:
            self._id = self._wandb_init["id"] = run_id
            self._is_continued = True

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            if self._run is not None:
                self._move_in(self._run)
            self._start()
            if self._run is not None and self._is_continued:
                self._catch_up(self._run)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Put values, or what W&B makes of pictures and tables, into the row of a step; of the newest if left out."""
        _ = self.experiment  # with the rows of before
        if step is not None and step != self._step:
            self._give_row()
            self._step = step
        self._row.update(metrics)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Give the last row, and end the run if it is a command's: W&B at the end of a process writes in colours.

        Where it can be seen is then said once: by the command that has succeeded, else here.
        """
        if self._experiment is not None:
            self._give_row()
        super().finalize(status)
        if self._experiment is not None and self._run is not None and self._way is None:
            self._way = self.how_to_look()
            self._experiment.finish(exit_code=int(status != "success"))
            if status != "success":
                rank_zero_info(f"W&B: {self._way}")

    def how_to_look(self) -> str:
        """One line: where the run can be seen."""
        if self._way is not None:
            return self._way
        run = self.experiment
        if getattr(run, "offline", False):
            return f"wandb sync {shlex.quote(str(Path(run.dir).parent))}   (after wandb login)"
        return str(getattr(run, "url", None))

    def _move_in(self, run: RunLogger) -> None:
        folder = Path(run.log_dir)
        if not self._has_folder:
            self._save_dir = self._wandb_init["dir"] = str(folder)
        if self._name is None:
            self._name = self._wandb_init["name"] = f"{run.name}/{folder.name}"
        # W&B falls back to a temporary folder, with a warning, if this one is not there
        folder.mkdir(parents=True, exist_ok=True)

    def _start(self) -> None:
        """Open the run, offline if it cannot be online."""
        import wandb

        own = {**PATIENCE, "git_root": os.getcwd(), "quiet": self._run is not None}
        self._wandb_init["settings"] = {n: value for n, value in own.items() if f"WANDB_{n.upper()}" not in os.environ}
        if "WANDB_SWEEP_ID" in os.environ:  # W&B would warn that it takes them from its agent
            for name in ("project", "entity", "id"):
                self._wandb_init.pop(name, None)
        if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
            _ = super().experiment  # W&B obeys by itself
            return
        try:
            if wandb.login(prompt=False):
                _ = super().experiment
                return
            rank_zero_info("W&B: not logged in, so the run is logged offline")
        except wandb.errors.CommError as error:  # the key is refused, or nobody answers
            rank_zero_warn(f"W&B: the run is logged offline, since it cannot be online: {str(error).splitlines()[0]}")
        self._wandb_init["mode"] = "offline"
        _ = super().experiment

    def _catch_up(self, run: RunLogger) -> None:
        """Log what the run had logged before it was killed and W&B has not got; the rest of that is passed over."""
        assert self._experiment is not None
        online = 0 if getattr(self._experiment, "offline", True) else getattr(self._experiment, "starting_step", 0)
        self._first_step = max(online, next_step(Path(self._save_dir or "."), self._id or ""))
        for row in run.former_rows(self._first_step):
            step = int(row.pop("step"))
            self.log_metrics(row, step)
            if "train/loss_epoch" in row and "epoch" in row:
                for path in sorted(Path(run.log_dir).glob(f"*/epoch={int(row['epoch']):04d}.*")):
                    if path.suffix in (".png", ".gif"):
                        show_in_wandb(self, path.parent.name, path, step)

    def leave(self) -> None:
        """After a failure: let W&B end now, instead of with a traceback at the end of the process."""
        import wandb

        wandb.teardown(exit_code=1)

    _take_leave = leave

    def _give_row(self) -> None:
        if self._row and self._step >= self._first_step:
            assert self._experiment is not None
            self._experiment.log({**self._row, "trainer/global_step": self._step}, step=self._step, commit=True)
        self._row = {}
