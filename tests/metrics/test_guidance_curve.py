import math

import torch
from matplotlib.axes import Axes

from diffusion_lightning.metrics.guidance_curve import guidance_picture


def test_a_line_for_each_sampler_in_each_panel(monkeypatch):
    drawn = []
    plot = Axes.plot

    def spy(self, x, y, form, **settings):
        drawn.append((settings["label"], list(x), list(y)))
        return plot(self, x, y, form, **settings)

    monkeypatch.setattr(Axes, "plot", spy)
    curves = {"Heun": [(3.0, [2.0, 0.9]), (1.0, [4.0, 0.7])], "DDIM": [(1.0, [math.nan, 0.5])]}
    picture = guidance_picture(["fid/mnist@9", "agreement/mnist@9"], curves)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 850, 700)
    assert drawn == [
        ("Heun", [1.0, 3.0], [4.0, 2.0]),
        ("DDIM", [], []),
        ("Heun", [1.0, 3.0], [0.7, 0.9]),
        ("DDIM", [1.0], [0.5]),
    ]
    assert guidance_picture(["is/mnist@9"], {"Heun": [(1.0, [2.0])]}).shape == (3, 500, 700)
