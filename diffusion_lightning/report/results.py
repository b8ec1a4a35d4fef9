"""What came out of a run: for each metric its best value, the epoch of that, and the last one; and where time went."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion_lightning.callbacks.performance import PARTS
from diffusion_lightning.metrics.evaluation import is_spread
from diffusion_lightning.report.run import Run

COURSE = ("perf/", "time/", "train/lr", "train/loss_step", "train/gradient_norm", "train/ema_decay", "train/skipped_")
"""How the names begin of what tells of the training's course, and is no result."""

SMALL = {"loss", "fid", "kid", "wasserstein", "bits", "nll", "error"}
LARGE = {"is", "accuracy", "agreement", "legible", "precision", "recall", "density", "coverage"}
"""Words of metrics that are better the smaller, or the larger, they are."""


@dataclass(frozen=True)
class Result:
    """The values of one metric that are numbers.

    Args:
        best: None where it is not known which way is better.
        best_epoch: the first that had it; None where it was not logged with its epoch.
        last: the newest.
        last_epoch: of that.
        lowest: of all.
        highest: of all.
    """

    best: float | None
    best_epoch: int | None
    last: float
    last_epoch: int | None
    lowest: float
    highest: float


def results(run: Run) -> dict[str, Result]:
    """Of every metric that is a result and has at least one finite value, sorted by name."""
    found = {}
    for name in run.metrics:
        rows = [row for row in run.rows if math.isfinite(row.get(name, math.nan))]
        if rows and not name.startswith(COURSE) and not is_spread(name, run.metrics):
            sign = better(name)
            best = min(rows, key=lambda row: -sign * row[name]) if sign else None
            values = [row[name] for row in rows]
            found[name] = Result(
                best=best[name] if best else None,
                best_epoch=_epoch(best) if best else None,
                last=values[-1],
                last_epoch=_epoch(rows[-1]),
                lowest=min(values),
                highest=max(values),
            )
    return found


def better(metric: str) -> int:
    """1 for a metric that is better the larger it is, −1 the smaller, 0 where that is not known."""
    words = set(re.findall("[a-z]+", metric.lower()))
    return -1 if words & SMALL else 1 if words & LARGE else 0


def winners(metric: str, values: Sequence[float | None]) -> list[bool]:
    """Which of several runs' best values is the best of all; none where there is nothing to choose between."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if better(metric) == 0 or len(known) < 2 or len(set(known)) == 1:
        return [False] * len(values)
    best = max(known) if better(metric) > 0 else min(known)
    return [value == best for value in values]


def seconds_of_parts(run: Run) -> dict[str, float]:
    """How long each part of the epochs took that have been reported, those of RunReport; empty without any."""
    sums = {part: [value for _, value in run.series(f"time/{part}")] for part in PARTS}
    return {part: math.fsum(values) for part, values in sums.items()} if any(sums.values()) else {}


def _epoch(row: Mapping[str, float]) -> int | None:
    return int(row["epoch"]) if math.isfinite(row.get("epoch", math.nan)) else None
