"""The page: what is known of the runs, filled into ``page.html`` with its style and its script."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffusion_lightning.progress import progress_bar
from diffusion_lightning.report import units
from diffusion_lightning.report.commands import commands
from diffusion_lightning.report.curves import COLORS, HEIGHT, WIDTH, Chart, draw, groups
from diffusion_lightning.report.pictures import MOST_EPOCHS, Figure, Picture, embed, figures
from diffusion_lightning.report.results import results, seconds_of_parts, winners
from diffusion_lightning.report.run import Run, labels
from diffusion_lightning.report.settings import differing, of_note
from diffusion_lightning.version import __version__

CHIEF_PACKAGES = ("diffusion-lightning", "torch", "torchvision", "lightning", "torchmetrics", "numpy", "timm", "wandb")
"""Whose versions are shown at once; the others are folded away."""

MOST_CARDS = 6
"""Results that are shown at the top."""

SHOWN_SIZE = 560
"""Pixels up to which small pictures are shown enlarged, by a whole number, in width and height."""


def render(runs: Sequence[Run]) -> str:
    """The whole page of one or several runs, as one HTML document that refers to nothing outside of it."""
    names = labels([run.folder for run in runs])
    planned = groups(runs, names)
    every = _steps_of_epoch(runs)
    with progress_bar(
        total=len(planned) + sum(map(_count_pictures, runs)), desc="report", unit="picture", delay=2
    ) as bar:
        drawn: list[Chart] = []
        for chart in planned:
            drawn.append(draw(*chart, steps_of_epoch=every))
            bar.update()
        shown: list[Figure] = figures(runs, bar.update)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": units.number, "duration": units.duration, "when": _when, "scale": _scale}
    return environment.get_template("page.html").render(
        runs=[_view(run, name, index % COLORS) for index, (run, name) in enumerate(zip(runs, names, strict=True))],
        figures=shown,
        charts=drawn,
        chart_size=(WIDTH, HEIGHT),
        results=_results(runs),
        times=_times(runs),
        evaluations=_evaluations(runs),
        differing=differing([run.config for run in runs]) if len(runs) > 1 else {},
        most_epochs=MOST_EPOCHS,
        here=Path.cwd(),
        is_relative=not all(run.folder.is_absolute() for run in runs),
        made=datetime.now().astimezone(),
        version=__version__,
    )


# ---- what the page shows of each run


def _view(run: Run, name: str, color: int) -> dict[str, Any]:
    return {
        "name": name,
        "color": color,
        "folder": run.folder,
        "began": run.began,
        "written": run.written,
        "state": _state(run),
        "cards": list(_cards(run)),
        "of_note": of_note(run.config),
        "flaws": run.flaws,
        "commands": commands(run),
        "config": _lines(run.config_text),
        "resumes": _changes([*run.former_configs, run.config]),
        "origin": run.origin,
        "chief_packages": {name: run.origin.packages[name] for name in CHIEF_PACKAGES if name in run.origin.packages},
        "evaluation_pictures": [
            (f"{path.stem} of {path.parent.name}", picture)
            for path in run.evaluation_pictures
            if (picture := embed(path)) is not None
        ],
    }


def _state(run: Run) -> str:
    if run.is_finished:
        return "finished"
    epochs = run.wanted("max_epochs")
    return f"{run.epochs} of {epochs} epochs: still going, or stopped" if epochs else "still going, or stopped"


def _cards(run: Run) -> Iterator[tuple[str, str, str]]:
    """The few numbers that matter most: name, value, and what belongs to it."""
    if run.rows:
        yield "trained for", f"{run.epochs:,} epoch{'s' * (run.epochs != 1)}", f"{run.steps:,} steps"
    for metric, result in list(results(run).items())[:MOST_CARDS]:
        if metric == "train/loss_epoch":
            continue
        place = "" if result.last_epoch is None else f"last, epoch {result.last_epoch}"
        if result.best is not None and result.best != result.last:
            place += f"; best {units.number(result.best)}" + (
                f", epoch {result.best_epoch}" if result.best_epoch is not None else ""
            )
        yield metric, units.number(result.last), place
    if seconds := seconds_of_parts(run):
        yield "time", units.duration(sum(seconds.values())), "in the epochs that have ended"
    if rates := [value for _, value in run.series("perf/examples_per_s")]:
        yield "examples/s", units.number(round(median(rates))), "median, in training"
    if memory := [value for _, value in run.series("perf/memory_gb")]:
        yield "memory", f"{max(memory):.2f} GB", "at its peak"


def _lines(config_text: str) -> list[tuple[str, str, bool]]:
    """Each line of a YAML text: up to the name of a setting, what follows, and whether it sets nothing."""
    found = []
    for line in config_text.splitlines():
        match = re.match(r"(\s*(?:- )*[^\s#:'\"][^:]*:)(?=\s|$)", line)
        name = match[1] if match else ""
        value = line[len(name) :]
        found.append((name, value, value.strip() in ("null", "[]", "{}")))
    return found


def _changes(configs: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str | None, str | None]]]:
    """For each resume that changed settings: their paths, and the values before and after."""
    return [
        [(path, before, after) for path, (before, after) in differing(pair).items()]
        for pair in itertools.pairwise(configs)
        if all(pair)
    ]


# ---- what it shows of all runs together


def _results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each metric: its result in each run, None where it has none, and whether that is the best of all."""
    found = [results(run) for run in runs]
    rows = []
    for metric in sorted({metric for of_run in found for metric in of_run}):
        cells = [of_run.get(metric) for of_run in found]
        best = winners(metric, [cell.best if cell else None for cell in cells])
        rows.append({"metric": metric, "cells": list(zip(cells, best, strict=True))})
    return rows


def _times(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run that has it: number, seconds by part, their sum."""
    found = [(index, seconds_of_parts(run)) for index, run in enumerate(runs)]
    return [
        {"run": index, "seconds": seconds, "total": sum(seconds.values())}
        for index, seconds in found
        if sum(seconds.values()) > 0
    ]


def _evaluations(runs: Sequence[Run]) -> dict[str, Any]:
    """The columns of metrics, and a row for each evaluation with the number of its run."""
    found = [(index, evaluation) for index, run in enumerate(runs) for evaluation in run.evaluations]
    metrics = sorted({metric for _, evaluation in found for metric in evaluation.metrics})
    best = {metric: winners(metric, [evaluation.metrics.get(metric) for _, evaluation in found]) for metric in metrics}
    rows = [
        {
            "run": index,
            "of": evaluation,
            "cells": [
                (evaluation.metrics.get(metric), evaluation.spreads.get(metric), best[metric][row])
                for metric in metrics
            ],
        }
        for row, (index, evaluation) in enumerate(found)
    ]
    return {"metrics": metrics, "rows": rows}


def _steps_of_epoch(runs: Sequence[Run]) -> float | None:
    """How many steps an epoch has, if all epochs of all runs have as many, to one in a hundred."""
    found = [
        (row["step"] + 1) / (row["epoch"] + 1)
        for run in runs
        for row in run.rows
        if "train/loss_epoch" in row and "epoch" in row
    ]
    return found[-1] if found and max(found) <= 1.01 * min(found) else None


def _count_pictures(run: Run) -> int:
    return sum(min(len(found), MOST_EPOCHS) for found in run.pictures.values()) + len(run.animations)


# ---- how it is written


def _when(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M")


def _scale(picture: Picture) -> int:
    """How many times as large as it is a small picture is shown."""
    return max(1, SHOWN_SIZE // max(picture.width, picture.height))
