"""What a run's folder holds, read as it stands: the run may still be going, or have been killed at any moment."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from diffusion_lightning.loggers.metrics_table import read_rows
from diffusion_lightning.metrics.evaluation import is_spread, spread_of
from diffusion_lightning.report.origin import Origin, read_origin

EPOCH_FILE = re.compile(r"epoch=(\d+)\.(png|gif)")
WITHOUT_PICTURES = {"checkpoints", "wandb", "tensorboard", "evaluations"}
"""Folders of a run in which no callback leaves pictures of its own."""

Series = list[tuple[int, float]]
"""The values of a metric, each with its step."""


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint's samples by one sampler were found to be worth, by ``lightning evaluate``.

    Args:
        checkpoint: name of its file.
        step: that it was saved at.
        sampler: in words, with what steered it.
        nfe: network evaluations of a sample.
        num: samples.
        metrics: by name, without their spreads.
        spreads: of those that have one, their standard deviation or error, by the metric's name.
    """

    checkpoint: str
    step: float | None
    sampler: str
    nfe: float | None
    num: float | None
    metrics: dict[str, float]
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        folder: as the user gave it, or the version in it.
        config_text: ``config.yaml`` as it is, empty without one.
        config: the same, parsed; empty where it cannot be.
        former_configs: those of before a resume that changed settings, the oldest first.
        rows: ``metrics.csv`` by step, ascending.
        pictures: by the name of their folder and by epoch.
        animations: likewise.
        evaluations: of ``evaluations/*/results.json``, in the order of the folders' names.
        evaluation_pictures: beside those files.
        checkpoints: files.
        origin: the code and the packages that it was trained with.
        began: when the oldest of its files was written that are there from the start; None if there is none.
        written: when it last wrote metrics or a checkpoint; None if it did not.
        flaws: what is missing or cannot be read, a sentence each.
    """

    folder: Path
    config_text: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    former_configs: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[Mapping[str, float]] = ()
    pictures: Mapping[str, Mapping[int, Path]] = field(default_factory=dict)
    animations: Mapping[str, Mapping[int, Path]] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    evaluation_pictures: Sequence[Path] = ()
    checkpoints: Sequence[Path] = ()
    origin: Origin = field(default_factory=Origin)
    began: datetime | None = None
    written: datetime | None = None
    flaws: Sequence[str] = ()

    @property
    def metrics(self) -> list[str]:
        """The names of all that was logged."""
        return sorted(set().union(*self.rows) - {"step", "epoch"})

    def series(self, name: str) -> Series:
        """A metric's values, NaN and infinities among them."""
        return [(int(row["step"]), row[name]) for row in self.rows if name in row]

    @property
    def steps(self) -> int:
        """Optimizer steps up to the last that was logged, the first one being number 0."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        ended = [int(row["epoch"]) for row in self.rows if "epoch" in row and "train/loss_epoch" in row]
        return max(ended, default=-1) + 1

    def wanted(self, name: str) -> int | None:
        """``max_epochs`` or ``max_steps`` of its config; None if there is no such limit."""
        trainer = self.config.get("trainer")
        value = trainer.get(name) if isinstance(trainer, dict) else None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def is_finished(self) -> bool:
        """Whether it has made all the epochs, or steps, that its config asks for."""
        epochs, steps = self.wanted("max_epochs"), self.wanted("max_steps")
        return (epochs is not None and self.epochs >= epochs) or (steps is not None and self.steps >= steps)

    def checkpoint(self, name: str) -> Path | None:
        """The checkpoint of this file name, if there is one."""
        return next((path for path in self.checkpoints if path.name == name), None)


def read_run(folder: Path) -> Run:
    """All that a run's folder holds; what cannot be read is left out and told of in ``flaws``."""
    flaws: list[str] = []
    config_text, config = _read_config(folder / "config.yaml", flaws)
    former = sorted(folder.glob("config.before_resume_*.yaml"), key=lambda path: (len(path.name), path.name))
    rows = _read_metrics(folder / "metrics.csv", flaws)
    pictures: dict[str, dict[int, Path]] = {}
    animations: dict[str, dict[int, Path]] = {}
    for name, epoch, path in _pictures(folder):
        (pictures if path.suffix == ".png" else animations).setdefault(name, {})[epoch] = path
    checkpoints = sorted(folder.glob("checkpoints/*.ckpt"))
    if not pictures and not animations:
        flaws.append("There are no pictures: no callback draws any (SampleGrid does), or no epoch has ended yet.")
    if not checkpoints:
        flaws.append("There is no checkpoint, so it can be neither resumed nor sampled from.")
    for path in sorted(folder.glob("non_finite.*")):
        flaws.append(f"Training met losses or gradients that are not finite; see {path.name} in its folder.")
    evaluations = [found for path in sorted(folder.glob("evaluations/*/*.json")) for found in _evaluations(path, flaws)]
    origin = read_origin(folder)
    started = _modified([folder / "config.yaml", *former])
    lasting = _modified([folder / "metrics.csv", *checkpoints])
    return Run(
        folder=folder,
        config_text=config_text,
        config=config,
        former_configs=[_read_config(path, flaws)[1] for path in former],
        rows=rows,
        pictures=pictures,
        animations=animations,
        evaluations=evaluations,
        evaluation_pictures=sorted(folder.glob("evaluations/*/*.png")),
        checkpoints=checkpoints,
        origin=origin,
        began=min([*started, *([origin.began] if origin.began else [])], default=None),
        written=max(lasting, default=None),
        flaws=flaws,
    )


def labels(folders: Sequence[Path]) -> list[str]:
    """Names to tell folders apart by: ``quickstart/version_0``, with as many parents more as that takes."""
    parts = [folder.resolve().parts for folder in folders]
    versioned = all(re.fullmatch(r"version_\d+", part[-1]) for part in parts)
    for count in range(2 if versioned else 1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _read_config(path: Path, flaws: list[str]) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        flaws.append(f"There is no {path.name}, so its settings are not known.")
        return "", {}
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, yaml.CSafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        flaws.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return text, {}
    if not isinstance(config, dict):
        flaws.append(f"{path.name} holds no settings by name.")
        return text, {}
    return text, config


def _read_metrics(path: Path, flaws: list[str]) -> list[dict[str, float]]:
    """The rows, ascending; where steps go back the run was resumed there, and what had come after is void."""
    if not path.is_file():
        flaws.append("There is no metrics.csv: nothing has been logged yet, or not by the lightning command.")
        return []
    try:
        found = read_rows(path, 0, sys.maxsize)
    except OSError as error:
        flaws.append(f"metrics.csv cannot be read ({error.strerror}).")
        return []
    rows: list[dict[str, float]] = []
    for row in found:
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    if not rows:
        flaws.append("metrics.csv has no whole row yet.")
    return rows


def _pictures(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """The name of the callback's folder, the epoch and the path of each picture and animation."""
    for top in sorted(folder.iterdir()):
        if top.is_dir() and top.name not in WITHOUT_PICTURES:
            for path in sorted(top.rglob("epoch=*")):
                if match := EPOCH_FILE.fullmatch(path.name):
                    yield path.parent.relative_to(folder).as_posix(), int(match[1]), path


def _evaluations(path: Path, flaws: list[str]) -> list[Evaluation]:
    """Of one sampler, or of each of a sweep."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            Evaluation(
                checkpoint=Path(str(entry["checkpoint"])).name,
                step=_number(entry.get("step")),
                sampler=", ".join(filter(None, (str(entry["sampler"]), str(entry.get("guidance") or "")))),
                nfe=_number(entry.get("nfe")),
                num=_number(entry.get("num")),
                metrics={
                    str(name): float(value)
                    for name, value in entry["metrics"].items()
                    if not is_spread(name, entry["metrics"])
                },
                spreads={
                    str(name): float(spread)
                    for name in entry["metrics"]
                    if (spread := spread_of(name, entry["metrics"])) is not None
                },
            )
            for entry in content.get("sweep", [content])
        ]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        flaws.append(f"{path.relative_to(path.parents[2])} is not an evaluation, or not whole.")
        return []


def _number(value: Any) -> float | None:
    return float(value) if value is not None else None


def _modified(paths: Sequence[Path]) -> list[datetime]:
    """When each of those files that are there was last written."""
    times = []
    for path in paths:
        with suppress(OSError):  # a run that is going renames its checkpoints
            times.append(datetime.fromtimestamp(path.stat().st_mtime).astimezone())
    return times
