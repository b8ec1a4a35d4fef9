r"""DDPM's ancestral sampling and DDIM: steps by the posterior of x_s given x_t and a guess of x0.

Given x0, the state at s < t is Gaussian (Ho et al. 2020, eq. 6–7; for any linear SDE Kingma et al. 2021, appendix A):

.. math:: q(x_s \mid x_t, x_0) = \mathcal{N}\Big(\frac{\alpha_{t|s}\sigma_s^2}{\sigma_t^2}\,x_t
          + \frac{\alpha_s\sigma_{t|s}^2}{\sigma_t^2}\,x_0,\; \frac{\sigma_{t|s}^2\sigma_s^2}{\sigma_t^2}\,I\Big).

Both samplers put D(x_t, t) for x0. On a discrete process with as many steps as it has times they are the papers'; with
fewer they take evenly spread times of the grid, and a continuous process has its own ``timesteps``.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers.base import StepSampler
from diffusion_lightning.sde import SDE, expand, standard_normal


def posterior(sde: SDE, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, shape of ``x``, and standard deviation, ``(B, 1, …)``, of q(x_s | x_t = x, x0), s < t."""
    ratio, variance = sde.transition(t, s)
    fresh = variance / sde.sigma(t) ** 2  # the part of x_t's noise that came after s
    mean = expand(ratio * (sde.sigma(s) / sde.sigma(t)) ** 2, x) * x + expand(sde.alpha(s) * fresh, x) * x0
    return mean, expand(fresh.sqrt() * sde.sigma(s), x)


class _Ancestral(StepSampler):
    """Steps through the times of the process; the last evaluation, at t_min, is the sample."""

    @abstractmethod
    def step(self, sde: SDE, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_s given x_t = ``x`` and D(x_t, t) = ``x0``."""

    @property
    def noisy(self) -> bool:
        """Whether the standard deviation is above zero."""
        return True

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        sde = denoiser.sde
        times = self.times(sde, self.steps - 1, x) if self.steps > 1 else x.new_full((1,), sde.T)
        for i, t in enumerate(times):
            t = t.expand(len(x))
            x0 = denoiser.denoise(x, t, **cond)
            if i == self.steps - 1:
                yield x0
                return
            x, std = self.step(sde, x, x0, t, times[i + 1].expand(len(x)))
            if self.noisy:
                x = x + std * standard_normal(x.shape, device=x.device, generator=generator)
            yield x


class DDPM(_Ancestral):
    """Ancestral sampling (Ho et al. 2020, algorithm 2); one evaluation a step.

    Args:
        steps: how many; 1,000 on ``DiscreteVPSDE(1000)`` is the paper's sampler.
        variance: of the noise added in a step: ``"posterior"``, that of q(x_s | x_t, x0), or ``"beta"``, σ²_{t|s},
            which is β_t on DDPM's grid (the two choices of the paper's section 3.2).
        t_min: the last time; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: for another ``variance``.
    """

    def __init__(
        self, steps: int = 1000, variance: Literal["posterior", "beta"] = "posterior", t_min: float | None = None
    ) -> None:
        super().__init__(steps, t_min)
        if variance not in ("posterior", "beta"):
            raise ValueError(f"variance={variance!r}: must be 'posterior' or 'beta'")
        self.variance = variance

    def step(self, sde: SDE, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = posterior(sde, x, x0, t, s)
        return mean, std if self.variance == "posterior" else expand(sde.transition(t, s)[1].sqrt(), x)


class DDIM(_Ancestral):
    r"""DDIM (Song, Meng & Ermon 2021, eq. 12): x_s = α_s·D + √(σ_s² − τ²)·ẑ + τ·z; one evaluation a step.

    ẑ is the noise predicted at t, and τ = η times the standard deviation of q(x_s | x_t, x0). With η = 0 it is
    deterministic, a first-order solver of the probability-flow ODE; with η = 1 it is :class:`DDPM`.

    Args:
        steps: how many.
        eta: η, in [0, 1].
        t_min: the last time; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``eta`` is outside [0, 1].
    """

    def __init__(self, steps: int = 50, eta: float = 0.0, t_min: float | None = None) -> None:
        super().__init__(steps, t_min)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: must be in [0, 1]")
        self.eta = eta

    @property
    def noisy(self) -> bool:
        return self.eta > 0

    def step(self, sde: SDE, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        std = self.eta * posterior(sde, x, x0, t, s)[1]
        mean, sigma = sde.marginal(x0, t)
        noise = (x - mean) / sigma
        mean, sigma = sde.marginal(x0, s)
        return mean + (sigma**2 - std**2).clamp(min=0).sqrt() * noise, std
