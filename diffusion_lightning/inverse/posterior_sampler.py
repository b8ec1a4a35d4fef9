"""Samplers of p(x0 | y), where a method is more than a denoiser in one of the usual samplers."""

import torch
from torch import Tensor

from diffusion_lightning.inverse.measured import Measured
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.samplers.noise_level import RhoSpacedSampler
from diffusion_lightning.sde import standard_normal


class PosteriorSampler(Measured, RhoSpacedSampler):
    """A sampler that knows a measurement y = A(x0) + n.

    Args:
        y: what was measured, ``(B, …)``, one for each sample, or ``(1, …)``, the same for all.
        operator: A.
        noise_std: σ_y, the standard deviation of n, in the units of ``y``.
        steps: N, the last, which ends at noise level 0, included.
        rho: ρ ≥ 1, the exponent of the grid of noise levels.
        t_min: where the grid ends before the last step; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``noise_std`` is negative or not finite, ``y`` is not finite, the method and the operator do not
            fit, ``steps`` is below 1 or ``rho`` below 1.
    """

    def __init__(
        self,
        y: Tensor,
        operator: Operator,
        noise_std: float = 0.0,
        steps: int = 20,
        rho: float = 7.0,
        t_min: float | None = None,
    ) -> None:
        super().__init__(steps, rho, t_min)
        self.y, self.operator, self.noise_std = y, operator, noise_std
        self.check_measurement()


def ancestral(x: Tensor, denoised: Tensor, level: float, next_level: float) -> tuple[Tensor, float]:
    r"""Mean and standard deviation of p(x̃′ | x̃, x0 = D), from a noise level to a lower one.

    .. math:: \tilde x + \Big(1 - \frac{\tilde\sigma'^2}{\tilde\sigma^2}\Big)(D - \tilde x), \qquad
              \tilde\sigma'\, \sqrt{1 - \tilde\sigma'^2 / \tilde\sigma^2}

    (Ho et al. 2020, eq. 7, in the variables of :mod:`~diffusion_lightning.samplers.noise_level`).
    """
    kept = (next_level / level) ** 2
    return denoised + kept * (x - denoised), next_level * (1 - kept) ** 0.5


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """z ~ N(0, I) of x's shape."""
    return standard_normal(x.shape, device=x.device, dtype=x.dtype, generator=generator)
