"""What guidance gains and costs: metrics against its weight, a line for each sampler, as a picture."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from diffusion_lightning.images import figure_picture


def guidance_picture(names: Sequence[str], curves: Mapping[str, Sequence[tuple[float, Sequence[float]]]]) -> Tensor:
    """A panel for each metric over one axis of weights, 1 marked as that without guidance; uint8 ``(3, H, W)``.

    Args:
        names: of the metrics, such as ``["fid/mnist@1000", "agreement/mnist@1000"]``.
        curves: by sampler, weights, each with its values of these metrics; values that are not finite are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.5 + 3.5 * len(names)), dpi=100, layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for place, (panel, name) in enumerate(zip(panels, names, strict=True)):
        for label, points in curves.items():
            drawn = sorted((weight, values[place]) for weight, values in points if math.isfinite(values[place]))
            panel.plot(
                *(zip(*drawn, strict=True) if drawn else ([], [])), "o-", markersize=5, linewidth=1.5, label=label
            )
        panel.axvline(1, color="gray", linestyle=":", linewidth=1)
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=9)
    panels[-1].set_xlabel("weight of the guidance; 1: without")
    return figure_picture(figure)
