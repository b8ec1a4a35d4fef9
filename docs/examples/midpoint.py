"""A sampler of one's own: the loop of its paper."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning import Denoiser
from diffusion_lightning.samplers.base import StepSampler, intervals
from diffusion_lightning.sde import expand


class Midpoint(StepSampler):
    """The probability-flow ODE by the midpoint rule: two evaluations a step, of second order."""

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        for t, s, _ in intervals(self.times(denoiser.sde, self.steps, x), len(x)):
            middle = x + expand((s - t) / 2, x) * denoiser.probability_flow(x, t, **cond)
            x = x + expand(s - t, x) * denoiser.probability_flow(middle, (t + s) / 2, **cond)
            yield x
