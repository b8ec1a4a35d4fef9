"""A distance against what it costs: the Fréchet distance of samplers over their network evaluations, as a picture."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from diffusion_lightning.images import figure_picture

SMALLEST = 1e-6
"""A distance at or below zero, which rounding can make, is drawn here."""

CLOSE = 1.12
"""Ticks nearer to each other than by this factor would overlap."""


def cost_picture(curves: Mapping[str, Sequence[tuple[int, float]]], name: str) -> Tensor:
    """One line a sampler, both axes logarithmic, the smallest distance marked; uint8 ``(3, H, W)``.

    Args:
        curves: by sampler, pairs (NFE, distance); those that are not finite are left out.
        name: of the distance, such as ``"fid/mnist@1000"``.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, NullLocator

    drawn = {
        label: sorted((nfe, max(value, SMALLEST)) for nfe, value in points if math.isfinite(value))
        for label, points in curves.items()
    }
    figure = Figure(figsize=(7, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("log")
    panel.set_yscale("log")
    for label, points in drawn.items():
        panel.plot(*zip(*points, strict=True) if points else ([], []), "o-", markersize=5, linewidth=1.5, label=label)
    best = min(((value, nfe, label) for label, points in drawn.items() for nfe, value in points), default=None)
    if best is not None:
        value, nfe, label = best
        panel.plot(
            nfe, value, "*", color="black", markersize=16, zorder=3, label=f"best: {label}, {nfe} NFE, {value:.4g}"
        )
    ticks: list[int] = []
    for nfe in sorted({nfe for points in drawn.values() for nfe, _ in points}):
        if not ticks or nfe > CLOSE * ticks[-1]:
            ticks.append(nfe)
    panel.set_xticks(ticks, [str(nfe) for nfe in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(LogFormatter())
    panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    panel.set_xlabel("NFE, network evaluations a sample")
    panel.set_ylabel(name)
    panel.grid(which="both", alpha=0.25)
    panel.legend(fontsize=9)
    return figure_picture(figure)
