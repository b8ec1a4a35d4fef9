"""Two loggers: the run's own folder with its CSV, and W&B that needs no account and continues its run."""

import csv
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only


class RunLogger(loggers.CSVLogger):
    """Owns the run's folder ``<root>/<name>/version_<n>`` and writes ``metrics.csv`` there.

    A new run takes the next free number when it first asks for it, and makes the folder in the same breath, so that two
    runs never share one. A resumed run appends to its own file, without the rows after the step it resumes from.

    Args:
        root: folder of all runs.
        name: of the run.
        resume: the run's folder, to continue in it.
        resume_step: the optimizer step it continues from.
    """

    def __init__(self, root: str | Path, name: str, resume: Path | None = None, resume_step: int = 0) -> None:
        if resume is not None:
            super().__init__(resume.parent.parent, name=resume.parent.name, version=resume.name)
        else:
            super().__init__(root, name=name)
        # a row is written when it is logged, which the trainer's log_every_n_steps already makes rare
        self._flush_logs_every_n_steps = 1
        self._resume_step = resume_step

    @property
    def version(self) -> int | str:
        if self._version is None:
            candidate = self._get_next_version()
        while self._version is None:
            if _is_rank_zero():
                try:
                    os.makedirs(os.path.join(self.root_dir, f"version_{candidate}"))
                except FileExistsError:
                    candidate += 1  # another run was faster, or a file has the name
                    continue
                except OSError as error:
                    raise OSError(
                        f"trainer.default_root_dir={str(self.save_dir)!r}: no folder can be made there "
                        f"({error.strerror}): give one that can be written"
                    ) from error
            self._version = candidate
        return self._version

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _ResumingWriter(self.log_dir, self._resume_step)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; the folder of a run that failed before it wrote anything is taken away again."""
        super().finalize(status)
        if status == "failed" and self._version is not None:
            with suppress(OSError):  # not empty
                os.rmdir(self.log_dir)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""


class _ResumingWriter(ExperimentWriter):
    """Lightning's writer, which keeps the rows that were there before the step it resumes from."""

    def __init__(self, log_dir: str, resume_step: int) -> None:
        self._resume_step = resume_step
        super().__init__(log_dir)
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if row["step"] and int(row["step"]) < resume_step]
                self.metrics_keys = list(reader.fieldnames or [])
            part = Path(self.metrics_file_path + ".part")
            with open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
                writer.writeheader()
                writer.writerows(rows)
            part.replace(self.metrics_file_path)

    def _check_log_dir_exists(self) -> None:
        """Lightning's would delete what is there."""


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0  # known from the environment before any process group is


class WandbLogger(loggers.WandbLogger):
    """Weights & Biases, online if the user is logged in, else offline with a line that says how to sync. Never asks.

    ``WANDB_MODE`` decides if it is set; ``online`` without a key is still offline.

    Args:
        project: in which the run appears.
        name: of the run; W&B invents one if left out.
        group: of runs that belong together.
        tags: of the run.
        notes: of the run.
        entity: user or team; the key's owner if left out.
        id: of the run, to continue one; a resumed checkpoint brings its own.
        save_dir: where the files go; the run's folder if left out.
    """

    def __init__(
        self,
        project: str = "diffusion_lightning",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        entity: str | None = None,
        id: str | None = None,
        save_dir: str | None = None,
    ) -> None:
        super().__init__(
            name=name, save_dir=save_dir or ".", project=project, id=id or secrets.token_hex(4),
            group=group, tags=list(tags) if tags is not None else None, notes=notes, entity=entity,
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, whatever its value
        self._has_folder = save_dir is not None
        self._run: RunLogger | None = None

    def belong_to(self, run: RunLogger, run_id: str | None) -> None:
        """Take the run's folder and name where the user gave none, and the id of the W&B run that is continued.

        The folder is asked for when the first thing is logged: a run that fails before leaves none behind.
        """
        self._run = run
        if run_id is not None:
            self._id = self._wandb_init["id"] = run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            if self._run is not None:
                folder = Path(self._run.log_dir)
                if not self._has_folder:
                    self._save_dir = self._wandb_init["dir"] = str(folder)
                if self._name is None:
                    self._name = self._wandb_init["name"] = f"{self._run.name}/{folder.name}"
                # W&B falls back to a temporary folder, with a warning, if this one is not there
                folder.mkdir(parents=True, exist_ok=True)
            if _must_be_offline():
                self._wandb_init["mode"] = "offline"
                rank_zero_info("W&B: not logged in, so the run is logged offline")
        return super().experiment

    def how_to_look(self) -> str:
        """One line: where the run can be seen."""
        run = self.experiment
        if getattr(run, "offline", False):
            return f"wandb sync {Path(run.dir).parent}   (after wandb login)"
        return str(getattr(run, "url", None))


def _must_be_offline() -> bool:
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        return False  # W&B obeys by itself
    return not wandb.login(prompt=False)
