"""EDM's sampler: Heun's second-order method on the probability-flow ODE, with optional churn (Karras et al. 2022)."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers.base import StepSampler
from diffusion_lightning.sde import rho_spaced, standard_normal


class Heun(StepSampler):
    r"""Algorithm 2 of Karras et al. 2022 (algorithm 1 when ``churn`` is 0); 2·steps − 1 evaluations.

    For any linear SDE the algorithm runs on x̃ = x/α as a function of the noise level σ̃ = σ/α, where the
    probability-flow ODE is dx̃/dσ̃ = (x̃ − D)/σ̃ whatever the process was (their eq. 4 with s = 1); for α = 1 these are
    x and σ themselves. The noise levels are σ̃_i, ρ-spaced from T to t_min (eq. 5), and then 0: the last step is
    Euler's, and returns the denoised image.

    Args:
        steps: N, the last included.
        rho: ρ ≥ 1, the exponent of the grid; larger puts more steps at low noise.
        churn: S_churn ≥ 0, how much fresh noise is added over all the steps; 0 gives the deterministic sampler. Unlike
            in the paper, none is added where it would raise the noise above that of T, so not in the first step.
        churn_min: S_tmin, the noise level below which none is added.
        churn_max: S_tmax, the one above which none is added.
        churn_noise: S_noise, the standard deviation of the added noise; slightly above 1 makes up for lost detail.
        t_min: where the grid ends before the last step; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``rho`` is below 1 or ``churn`` is negative.
    """

    def __init__(
        self,
        steps: int = 18,
        rho: float = 7.0,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        churn_noise: float = 1.0,
        t_min: float | None = None,
    ) -> None:
        super().__init__(steps, t_min)
        if rho < 1:
            raise ValueError(f"rho={rho}: must be at least 1")
        if churn < 0:
            raise ValueError(f"churn={churn}: must be 0 or above")
        self.rho = rho
        self.churn = churn
        self.churn_min, self.churn_max = churn_min, churn_max
        self.churn_noise = churn_noise

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        sde = denoiser.sde
        lowest = self.t_min or sde.t_min

        def derivative(x: Tensor, level: Tensor) -> Tensor:
            t = sde.time_at(level).clamp(lowest, sde.T)
            return (x - denoiser.denoise(sde.alpha(t) * x, t.expand(len(x)), **cond)) / level

        first, last = sde.noise_level(torch.tensor([sde.T, lowest], dtype=torch.float64)).tolist()
        grid = rho_spaced(first, last, self.steps - 1, self.rho) if self.steps > 1 else torch.tensor([first])
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        # decided on the host, once, so that no step waits for the device; noise above the prior's is never asked for
        churned = [
            gamma > 0 and self.churn_min <= level <= self.churn_max and (1 + gamma) * level <= first
            for level in grid.tolist()
        ]
        levels = torch.cat([grid, grid.new_zeros(1)]).to(x)

        x = x / sde.alpha(torch.tensor(sde.T, dtype=torch.float64)).to(x)
        for i, churn in enumerate(churned):
            level, next_level = levels[i], levels[i + 1]
            if churn:
                raised = (1 + gamma) * level
                z = standard_normal(x.shape, device=x.device, generator=generator)
                x = x + (raised**2 - level**2).sqrt() * self.churn_noise * z
                level = raised
            slope = derivative(x, level)
            euler = x + (next_level - level) * slope
            if i == self.steps - 1:
                yield euler  # at noise level 0, where x̃ is x
            else:
                x = x + (next_level - level) * (slope + derivative(euler, next_level)) / 2
                yield sde.alpha(sde.time_at(next_level)) * x
