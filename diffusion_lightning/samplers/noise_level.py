r"""The view in which every process is EDM's: x̃ = x/α as a function of the noise level σ̃ = σ/α.

There x̃ = x0 + σ̃·z, the probability-flow ODE is dx̃/dσ̃ = (x̃ − D)/σ̃ and the score is (D − x̃)/σ̃² (Karras et al. 2022,
eq. 3 and 4 with s = 1). An algorithm written in these variables fits every linear SDE; for α = 1 they are x and σ.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers.base import StepSampler
from diffusion_lightning.sde import SDE, rho_spaced

Denoise: TypeAlias = Callable[[Tensor, float], Tensor]
"""D(x̃, σ̃)."""


class NoiseLevelSampler(StepSampler):
    """A sampler whose steps are noise levels, from that of T down to that of t_min and then 0."""

    @abstractmethod
    def levels(self, sde: SDE) -> list[float]:
        """The noise levels σ̃ of the process that are visited, falling, without the 0."""

    @abstractmethod
    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        """The algorithm in x̃ and σ̃: yield x̃ and its noise level after each step, the last at 0."""

    def limits(self, sde: SDE) -> tuple[float, float]:
        """The noise levels of T and t_min."""
        ends = torch.tensor([sde.T, self.t_min or sde.t_min], dtype=torch.float64)
        first, last = sde.noise_level(ends).tolist()
        return first, last

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        sde = denoiser.sde
        lowest = self.t_min or sde.t_min

        # times and scales are worked out on the host, in double: no step waits for the device to read a number
        @cache
        def time_and_scale(level: float) -> tuple[float, float]:
            t = sde.time_at(torch.tensor(level, dtype=torch.float64)).clamp(lowest, sde.T)
            return t.item(), sde.alpha(t).item()

        def denoise(x: Tensor, level: float) -> Tensor:
            t, alpha = time_and_scale(level)
            return denoiser.denoise(alpha * x, x.new_full((len(x),), t), **cond)

        levels = self.levels(sde)
        start = x / time_and_scale(levels[0])[1]
        for x, level in self.walk(denoise, start, levels, generator):
            yield time_and_scale(level)[1] * x if level > 0 else x


class RhoSpacedSampler(NoiseLevelSampler):
    """One whose noise levels are ρ-spaced from T to t_min.

    Args:
        steps: N, the last, which ends at noise level 0, included.
        rho: ρ ≥ 1, the exponent of the grid; larger puts more steps at low noise.
        t_min: where the grid ends before the last step; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``rho`` is below 1.
    """

    def __init__(self, steps: int, rho: float, t_min: float | None) -> None:
        super().__init__(steps, t_min)
        if not 1 <= rho < math.inf:
            raise ValueError(f"rho={rho}: must be at least 1")
        self.rho = rho

    def levels(self, sde: SDE) -> list[float]:
        """The N noise levels σ̃_i (Karras et al. 2022, eq. 5)."""
        first, last = self.limits(sde)
        return rho_spaced(first, last, self.steps - 1, self.rho).tolist() if self.steps > 1 else [first]
