"""The run's own folder, with its ``metrics.csv``."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lightning.loggers.metrics_table import MetricsTable, read_rows


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
            resume = resume if len(resume.parts) > 1 else resume.absolute()  # its parent's name is the run's
            super().__init__(resume.parent.parent, name=resume.parent.name, version=resume.name)
        else:
            super().__init__(root, name=name)
        self._resume_step = resume_step
        self._table: MetricsTable | None = None
        self._made: list[Path] = []  # folders that were not there before, the innermost first

    @property
    def version(self) -> int | str:
        if self._version is None:
            candidate = self._get_next_version()
        while self._version is None:
            if _is_rank_zero():
                folder = Path(self.root_dir, f"version_{candidate}")
                missing = [place for place in (folder, *folder.parents) if not place.exists()]
                try:
                    folder.mkdir(parents=True)
                except FileExistsError:
                    candidate += 1  # another run was faster, or a file has the name
                    continue
                except OSError as error:
                    raise OSError(
                        f"trainer.default_root_dir={str(self.save_dir)!r}: no folder can be made there "
                        f"({error.strerror}): give one that can be written"
                    ) from error
                self._made = missing
            self._version = candidate
        return self._version

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:  # type: ignore[override]
        if self._table is None:
            self._table = MetricsTable(Path(self.log_dir, "metrics.csv"), self._resume_step)
        return self._table

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        """Put values into the row of a step, on disk at once: the trainer's ``log_every_n_steps`` makes them rare."""
        self.experiment.add(metrics, 0 if step is None else step)
        self.experiment.save()

    @rank_zero_only
    def save(self) -> None:
        """Write what could not be written before."""
        self.experiment.save()

    def row(self, step: int) -> dict[str, float]:
        """What has been logged of a step; nothing unless it is the newest; on rank zero."""
        return self.experiment.row(step)

    def former_rows(self, start: int) -> list[dict[str, float]]:
        """The rows from before the step that the run is resumed from, those of ``start`` and later; on rank zero."""
        return read_rows(Path(self.log_dir, "metrics.csv"), start, self._resume_step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; the folder of a run that failed before it wrote anything is taken away again."""
        if self._table is not None:
            self._table.save()
        if status == "failed" and self._version is not None:
            with suppress(OSError):  # not empty
                os.rmdir(self.log_dir)

    @rank_zero_only
    def withdraw(self) -> None:
        """Take away the folder that this logger has made, with all that has been put there; never one it has found."""
        made, self._made, self._table = self._made, [], None
        if not made:
            return
        shutil.rmtree(made[0], ignore_errors=True)
        for parent in made[1:]:
            with suppress(OSError):  # another run is there by now
                parent.rmdir()

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0  # known from the environment before any process group is
