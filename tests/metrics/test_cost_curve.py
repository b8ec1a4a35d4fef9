import math

import torch
from matplotlib.axes import Axes

from diffusion_lightning.metrics.cost_curve import SMALLEST, cost_picture


def test_lines_points_and_the_best(monkeypatch):
    drawn = []
    plot = Axes.plot

    def spy(self, x, y, form, **settings):
        drawn.append(
            (settings.get("label"), list(x) if hasattr(x, "__len__") else x, list(y) if hasattr(y, "__len__") else y)
        )
        return plot(self, x, y, form, **settings)

    monkeypatch.setattr(Axes, "plot", spy)
    picture = cost_picture(
        {"Heun": [(15, 3.0), (7, 20.0)], "DDIM": [(8, 2.0), (4, math.nan)], "DDPM": []}, "fid/mnist@9"
    )
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 500, 700)
    assert drawn == [
        ("Heun", [7, 15], [20.0, 3.0]),
        ("DDIM", [8], [2.0]),
        ("DDPM", [], []),
        ("best: DDIM, 8 NFE, 2", 8, 2.0),
    ]


def test_a_distance_that_rounding_made_negative_has_its_place():
    assert torch.equal(cost_picture({"a": [(1, -1e-9)]}, "fid"), cost_picture({"a": [(1, SMALLEST)]}, "fid"))


def test_nothing_to_show_is_no_failure():
    assert cost_picture({"a": [(1, math.nan)]}, "fid").shape == (3, 500, 700)
