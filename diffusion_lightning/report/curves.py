"""Metrics against the step as vector pictures in the page's own colours, light or dark, with values to point at."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lightning.metrics.evaluation import is_spread
from diffusion_lightning.report.run import Run, Series
from diffusion_lightning.report.units import number, plain

if TYPE_CHECKING:  # loaded only where something is drawn
    from matplotlib.axes import Axes

MOST_POINTS = 400
"""Of one line; of more values, means are drawn."""

COLORS = 8
"""Of lines, that the page has; with more lines they come again, dashed."""

FEW_POINTS = 12
"""Up to which each point is a dot."""

WIDTH, HEIGHT = 384.0, 232.0
"""Of a chart, in the units of its SVG."""

INK, FAINT, LINES = "#0b0c01", "#0b0c02", "#0a0b0"
"""Stand for the page's colours, of text, of the grid and (with a digit) of lines, until the picture is in the page."""


@dataclass(frozen=True)
class Kind:
    """Metrics that are shown in one chart.

    Args:
        names: of the metrics, a regular expression.
        title: in words; that of the metrics' family, such as FID, where it is empty.
        unit: of the values, if they have one.
        from_zero: whether the axis begins there.
        log_from: ratio of largest to smallest value from which on the axis is logarithmic, if all are positive.
        is_decay: whether the values are those of a moving average, which are the closer to 1 the longer it is.
    """

    names: str
    title: str = ""
    unit: str = ""
    from_zero: bool = False
    log_from: float = 10.0
    is_decay: bool = False


KINDS = (
    Kind(r"(.*/)?loss.*", "Loss"),
    Kind(r"(?!train/|perf/|lr\b).*"),
    Kind(r"train/gradient_norm", "Norm of the gradient"),
    Kind(r"(train/)?lr\b.*", "Learning rate", from_zero=True, log_from=1000.0),
    Kind(r"train/ema_decay", "Decay of the EMA weights", is_decay=True),
    Kind(r"perf/examples_per_s", "Throughput", "examples/s", from_zero=True, log_from=math.inf),
    Kind(
        r"perf/examples_per_s_rank", "Throughput of the first process", "examples/s", from_zero=True, log_from=math.inf
    ),
    Kind(r"perf/memory_gb", "Memory at its peak", "GB", from_zero=True, log_from=math.inf),
    Kind(r"train/skipped_steps", "Steps skipped so far", from_zero=True, log_from=math.inf),
    Kind(r".*"),
)
"""In the order in which they are shown; a metric is of the first one whose names it has."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        label: of the legend.
        color: its number, from 0 on.
        series: values, all of them.
        is_faint: whether it lies behind the others, for it is noisy.
    """

    label: str
    color: int
    series: Series
    is_faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart, drawn.

    Args:
        title: in words, with the unit.
        scale: what is to be known of the axis, such as ``log scale``; empty if nothing.
        svg: the picture, as a piece of HTML.
        legend: label and number of the colour of each line.
        points: of each line, for each of its points: x and y in the units of the SVG, the step and the value in words.
        note: what was left out or averaged; empty if nothing.
    """

    title: str
    scale: str
    svg: str
    legend: list[tuple[str, int]]
    points: list[list[tuple[float, float, str, str]]]
    note: str


def groups(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, Kind, list[Line]]]:
    """Title, kind and lines of every chart: of one run all metrics of a kind, of several one metric, a line for each.

    Args:
        runs: one or more.
        names: theirs, for the legend.
    """
    found: dict[tuple[int, str], list[str]] = {}
    for metric in sorted({metric for run in runs for metric in run.metrics}):
        if _is_shown(metric, runs):
            index = next(index for index, kind in enumerate(KINDS) if re.fullmatch(kind.names, metric))
            found.setdefault((index, KINDS[index].title or _family(metric)), []).append(metric)
    charts = []
    for (index, title), metrics in sorted(found.items()):
        if len(runs) == 1:
            lines = [
                Line(metric, color, runs[0].series(metric), is_faint=metric.endswith("_step") and len(metrics) > 1)
                for color, metric in enumerate(metrics)
            ]
            charts.append((title, KINDS[index], lines))
            continue
        for metric in metrics:
            named = [
                (name, color, run.series(metric)) for color, (run, name) in enumerate(zip(runs, names, strict=True))
            ]
            lines = [Line(*line) for line in named if _finite(line[2])]
            charts.append((title if len(metrics) == 1 else f"{title}: {metric}", KINDS[index], lines))
    return charts


def thin(series: Series) -> Series:
    """At most ``MOST_POINTS`` points: the means of as many neighbours each, the last ones perhaps of fewer."""
    count = math.ceil(len(series) / MOST_POINTS)
    parts = [series[first : first + count] for first in range(0, len(series), max(count, 1))]
    return [
        (round(sum(step for step, _ in part) / len(part)), math.fsum(value for _, value in part) / len(part))
        for part in parts
    ]


def draw(title: str, kind: Kind, lines: Sequence[Line], steps_of_epoch: float | None = None) -> Chart:
    """Draw the lines.

    Args:
        title: of the chart, in words.
        kind: of metrics, which decides on the axis.
        lines: each with at least one finite value.
        steps_of_epoch: for a second axis that counts epochs, on top.
    """
    import matplotlib
    from matplotlib.figure import Figure

    finite = [_finite(line.series) for line in lines]
    drawn = [thin(series) for series in finite]
    out = io.StringIO()
    # text as text; ids that are the title's own; every point, for all of them can be pointed at
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "path.simplify": False}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
        panel = figure.subplots()
        for line, series in zip(lines, drawn, strict=True):
            panel.plot(
                *zip(*series, strict=True),
                color=f"{LINES}{line.color % COLORS}",
                linestyle="-" if line.color < COLORS else "--",
                linewidth=1.0 if line.is_faint else 1.8,
                alpha=0.65 if line.is_faint else 1.0,
                zorder=2 if line.is_faint else 3,
                marker="o" if (len(series) <= FEW_POINTS and not line.is_faint) or len(series) == 1 else "",
                markersize=4,
            )
        scale = _scale(panel, kind, [value for series in drawn for _, value in series])
        last = max(step for series in drawn for step, _ in series)
        panel.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))  # the charts of a page side by side
        _style(panel, steps_of_epoch)
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        places = [panel.transData.transform(series) for series in drawn]
    points = [
        [
            (round(x, 1), round(HEIGHT - y, 1), f"step {step:,}", f"{number(value)} {kind.unit}".strip())
            for (x, y), (step, value) in zip(place.tolist(), series, strict=True)
        ]
        for place, series in zip(places, drawn, strict=True)
    ]
    return Chart(
        title=f"{title}, {kind.unit}" if kind.unit else title,
        scale=scale,
        svg=_for_the_page(out.getvalue()),
        legend=[(line.label, line.color) for line in lines],
        points=points,
        note=_note(lines, finite),
    )


def _is_shown(metric: str, runs: Sequence[Run]) -> bool:
    values = [value for run in runs for _, value in _finite(run.series(metric))]
    if metric == "train/skipped_steps":
        return any(values)
    if metric == "perf/examples_per_s_rank":  # of a single process, it is that of all
        of_all = [value for run in runs for _, value in _finite(run.series("perf/examples_per_s"))]
        return len(values) != len(of_all) or not all(map(_nearly, values, of_all))
    if any(is_spread(metric, run.metrics) for run in runs):
        return False
    return bool(values) and not metric.startswith("time/")


def _nearly(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def _family(metric: str) -> str:
    family = re.split("[/@]", metric)[0]
    return family.upper() if family in ("fid", "kid") else family.replace("_", " ")


def _finite(series: Series) -> Series:
    return [(step, value) for step, value in series if math.isfinite(value)]


def _scale(panel: "Axes", kind: Kind, values: Sequence[float]) -> str:
    """Settle the vertical axis, and tell of it in words if it is not a usual one."""
    from matplotlib.ticker import FuncFormatter, LogitLocator, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    low, high = min(values), max(values)
    if kind.is_decay and low > 0 and 0.9 < high < 1:
        panel.set_yscale("logit")
        panel.set_ylim(min(low, 0.5), 1 - (1 - high) / 2)
        panel.yaxis.set_major_locator(LogitLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.7g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        return "logit scale"
    if low > 0 and high / low >= kind.log_from:
        panel.set_yscale("log")
        is_wide = high / low >= 1000
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0), numticks=8))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        panel.yaxis.set_minor_locator(NullLocator())
        return "log scale"
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    if kind.from_zero and low >= 0:
        panel.set_ylim(0, 1.08 * high if high > 0 else 1)
    return ""


def _style(panel: "Axes", steps_of_epoch: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panel.patch.set_visible(False)
    panel.grid(axis="y", color=FAINT, linewidth=0.8)
    axes: list[Any] = [panel]
    panel.set_xlabel("step", color=INK, fontsize=11)
    if steps_of_epoch is not None:
        steps: Any = steps_of_epoch
        top = panel.secondary_xaxis("top", functions=(lambda x: x / steps, lambda x: x * steps))
        top.set_xlabel("epochs", color=INK, fontsize=11)
        axes.append(top)
    for each in axes:
        each.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        each.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        each.tick_params(which="both", colors=INK, length=0, labelsize=11)
        for spine in each.spines.values():
            spine.set_visible(False)


def _note(lines: Sequence[Line], finite: Sequence[Series]) -> str:
    notes = []
    averaged = max(math.ceil(len(series) / MOST_POINTS) for series in finite)
    if averaged > 1:
        notes.append(f"Each point is the mean of up to {averaged:,} values.")
    missing = sum(len(line.series) for line in lines) - sum(map(len, finite))
    if missing:
        notes.append(f"{missing:,} values that are not finite are left out.")
    return " ".join(notes)


def _for_the_page(svg: str) -> str:
    """A picture of matplotlib as a piece of HTML, in the page's colours and without what would touch the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)  # would hold for all of the page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # the same in every picture
    svg = re.sub(rf"{LINES}(\d)", r"var(--line-\1)", svg)
    return svg.replace(INK, "var(--soft)").replace(FAINT, "var(--rule)")
