"""EDM's sampler: Heun's second-order method on the probability-flow ODE, with optional churn (Karras et al. 2022)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lightning.samplers.noise_level import Denoise, RhoSpacedSampler
from diffusion_lightning.sde import standard_normal


class Heun(RhoSpacedSampler):
    r"""Algorithm 2 of Karras et al. 2022 (algorithm 1 when ``churn`` is 0); 2·steps − 1 evaluations.

    It runs on x̃ = x/α as a function of the noise level σ̃ = σ/α, so it fits every linear SDE (see
    :mod:`~diffusion_lightning.samplers.noise_level`). The noise levels are σ̃_i, ρ-spaced from T to t_min (eq. 5), and
    then 0: the last step is Euler's, and returns the denoised image.

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
        ValueError: if ``rho`` is below 1, ``churn`` or ``churn_noise`` negative, or ``churn_min`` above ``churn_max``.
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
        super().__init__(steps, rho, t_min)
        for name, value in (("churn", churn), ("churn_noise", churn_noise)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be 0 or above")
        if not 0 <= churn_min <= churn_max:
            raise ValueError(f"churn_min={churn_min}, churn_max={churn_max}: need 0 <= churn_min <= churn_max")
        self.churn = churn
        self.churn_min, self.churn_max = churn_min, churn_max
        self.churn_noise = churn_noise

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        for level, next_level in zip(levels, [*levels[1:], 0.0], strict=True):
            raised = (1 + gamma) * level
            if gamma > 0 and self.churn_min <= level <= self.churn_max and raised <= levels[0]:
                z = standard_normal(x.shape, device=x.device, generator=generator)
                x = x + math.sqrt(raised**2 - level**2) * self.churn_noise * z
                level = raised
            slope = (x - denoise(x, level)) / level
            euler = x + (next_level - level) * slope
            if next_level == 0:
                x = euler
            else:
                next_slope = (euler - denoise(euler, next_level)) / next_level
                x = x + (next_level - level) * (slope + next_slope) / 2
            yield x, next_level
