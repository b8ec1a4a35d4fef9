r"""The forward process: how a clean image becomes noise.

Every process here is a linear stochastic differential equation

.. math:: \mathrm{d}x = f(t)\,x\,\mathrm{d}t + g(t)\,\mathrm{d}w, \qquad t \in [t_{\min}, T],

whose marginals are Gaussian, :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,z` with :math:`z \sim \mathcal{N}(0, I)`.
The four functions are tied by (Särkkä & Solin 2019, section 6.1)

.. math:: \alpha' = f\alpha, \qquad (\sigma^2)' = 2f\sigma^2 + g^2 .

Symbols: α signal scale, σ noise standard deviation, f drift rate, g diffusion coefficient, and σ/α the
*noise level*, the one number on which the difficulty of denoising depends (Karras et al. 2022, section 2).
Times are tensors of shape ``(B,)``; images and points ``x`` are ``(B, …)``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import jvp

BISECTIONS = 60
"""Enough to halve any interval of times down to the spacing of float64."""


def expand(value: Tensor, x: Tensor) -> Tensor:
    """One value per example, shaped to broadcast: ``(B,)`` → ``(B, 1, …, 1)`` with as many axes as ``x``."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def standard_normal(
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw z ~ N(0, I).

    A generator draws on its own device and the result is moved, so that one CPU seed gives the same noise everywhere.
    """
    drawn_on = generator.device if generator is not None else device
    return torch.randn(*shape, device=drawn_on, dtype=dtype, generator=generator).to(device)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class SDE(ABC):
    """A linear forward process. A subclass must give α and σ; all else follows from them.

    The processes of this file give the rest in closed form as well, which is faster and exact at the ends.

    Attributes:
        T: the last time, where the data has become the prior.
        t_min: the first time used; below it the score of 8-bit images is not worth learning.
        variance_exploding: whether α = 1 throughout, so that the data is never shrunk.
    """

    T: float = 1.0
    t_min: float = 1e-5
    variance_exploding: bool = False

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the scale of the clean image in x_t; shape of ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), the standard deviation of the noise in x_t; shape of ``t``."""

    def drift_rate(self, t: Tensor) -> Tensor:
        """f(t) = d ln α / dt; shape of ``t``."""
        return jvp(lambda t: self.alpha(t).log(), (t.contiguous(),), (torch.ones_like(t),))[1]

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = √((σ²)' − 2fσ²), the diffusion coefficient; shape of ``t``."""
        variance, rate, *_ = jvp(lambda t: self.sigma(t) ** 2, (t.contiguous(),), (torch.ones_like(t),))
        return (rate - 2 * self.drift_rate(t) * variance).clamp(min=0).sqrt()

    def time_at(self, noise_level: Tensor) -> Tensor:
        """The inverse of t ↦ σ(t)/α(t), in [t_min, T]; shape of ``noise_level``, which is positive."""
        low = torch.full_like(noise_level, self.t_min)
        high = torch.full_like(noise_level, self.T)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.noise_level(middle) < noise_level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t)·x, the deterministic part of dx; shape of ``x``."""
        return expand(self.drift_rate(t), x) * x

    def noise_level(self, t: Tensor) -> Tensor:
        """σ(t)/α(t); shape of ``t``."""
        return self.sigma(t) / self.alpha(t)

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean α(t)·x0, shape of ``x0``, and standard deviation σ(t), shape ``(B, 1, …)``, of x_t given x0."""
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = α(t)·x0 + σ(t)·noise; shape of ``x0``."""
        mean, std = self.marginal(x0, t)
        return mean + std * noise

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""The exact step from s to t, s < t: x_t = α_{t|s}·x_s + σ_{t|s}·z.

        α_{t|s} = α_t/α_s and σ²_{t|s} = σ_t² − α²_{t|s}·σ_s² (Kingma et al. 2021, appendix A.1).

        Returns:
            α_{t|s} and σ²_{t|s}, each with the shape of ``t``.
        """
        ratio = self.alpha(t) / self.alpha(s)
        return ratio, self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2

    def prior(
        self,
        shape: Sequence[int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A draw from the distribution at T that sampling starts from: N(0, σ(T)²·I)."""
        return standard_normal(shape, device=device, generator=generator) * self._prior_std

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """ln N(z; 0, σ(T)²·I) in nats, summed over all but the batch axis; shape ``(B,)``."""
        normal = torch.distributions.Normal(0.0, self._prior_std)
        return normal.log_prob(z).flatten(1).sum(1)

    def timesteps(self, n: int) -> Tensor:
        """The ``n + 1`` decreasing times from T to t_min that suit this process: here uniform in t."""
        _require(n >= 1, f"steps={n}: at least 1 step is needed")
        return torch.linspace(self.T, self.t_min, n + 1, dtype=torch.float64).to(torch.get_default_dtype())

    @property
    def _prior_std(self) -> float:
        return self.sigma(torch.tensor(self.T, dtype=torch.float64)).item()


class _VarianceExploding(SDE):
    """α = 1 and f = 0: noise is added and the image never shrinks."""

    variance_exploding = True

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


class PowerVESDE(_VarianceExploding):
    r"""dx = σᵗ dw, with α = 1 and σ(t)² = (σ^{2t} − 1) / (2 ln σ), on t ∈ [1e-5, 1].

    The process of Song's score-SDE tutorial (2021).

    Args:
        sigma: the base σ, above 1; 25 suits images in [-1, 1] of 28 pixels.
    """

    def __init__(self, sigma: float = 25.0) -> None:
        _require(sigma > 1, f"sigma={sigma}: must be above 1")
        self._sigma = sigma
        self._log = math.log(sigma)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(2 * t * self._log) / (2 * self._log))

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.exp(t * self._log)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return torch.log1p(2 * self._log * noise_level**2) / (2 * self._log)


class VESDE(_VarianceExploding):
    r"""The variance-exploding SDE with geometric σ(t) = σ_min·(σ_max/σ_min)ᵗ, on t ∈ [1e-5, 1].

    g(t) = σ(t)·√(2 ln(σ_max/σ_min)) (Song et al. 2021, eq. 30). As there, the data counts as already holding noise
    of σ_min at t = 0.

    Args:
        sigma_min: noise at t = 0, positive; 0.01 is about one step of 8 bits in [-1, 1].
        sigma_max: noise at t = 1, about the largest distance between two images.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        _require(
            0 < sigma_min < sigma_max, f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max"
        )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return torch.log(noise_level / self.sigma_min) / self._log_ratio


class _LinearBeta(SDE):
    """β(t) = β_min + t·(β_max − β_min), its integral B(t) from 0 to t, and α = exp(−B/2)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        _require(0 < beta_min <= beta_max, f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """β(t), the rate of forgetting; shape of ``t``."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._beta_integral(t))

    def drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def _beta_integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def _time_at_integral(self, integral: Tensor) -> Tensor:
        # the root of a quadratic in the form that neither cancels at small t nor divides by zero for constant β
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


class VPSDE(_LinearBeta):
    r"""The variance-preserving SDE: dx = −½β(t)x dt + √β(t) dw, so that α² + σ² = 1; t ∈ [1e-5, 1].

    β(t) runs linearly from β_min to β_max (Song et al. 2021, eq. 32): the limit of DDPM (Ho et al. 2020).

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), at least β_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._beta_integral(t)))

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta(t))

    def time_at(self, noise_level: Tensor) -> Tensor:
        return self._time_at_integral(torch.log1p(noise_level**2))


class SubVPSDE(_LinearBeta):
    r"""The sub-variance-preserving SDE: VP's drift with σ(t) = 1 − exp(−B(t)), below VP's σ at every t.

    g(t)² = β(t)·(1 − exp(−2B(t))), B(t) = ∫₀ᵗ β (Song et al. 2021, eq. 12 and 29); t ∈ [1e-5, 1].

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), at least β_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._beta_integral(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self._beta_integral(t)))

    def time_at(self, noise_level: Tensor) -> Tensor:
        # σ/α = 2 sinh(B/2)
        return self._time_at_integral(2 * torch.asinh(noise_level / 2))


class KarrasSDE(_VarianceExploding):
    r"""EDM's process: σ(t) = t, α = 1, g(t) = √(2t), on t ∈ [σ_min, σ_max] (Karras et al. 2022, section 3).

    Args:
        sigma_min: the smallest time and noise, positive.
        sigma_max: the largest.
        rho: the exponent of the grid of :meth:`timesteps`; larger puts more steps at low noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _require(
            0 < sigma_min < sigma_max, f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max"
        )
        _require(rho >= 1, f"rho={rho}: must be at least 1")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.t_min, self.T = sigma_min, sigma_max

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return noise_level

    def timesteps(self, n: int) -> Tensor:
        """t_i = (σ_max^{1/ρ} + (i/n)(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, i = 0 … n (Karras et al. 2022, eq. 5)."""
        _require(n >= 1, f"steps={n}: at least 1 step is needed")
        return rho_spaced(self.T, self.t_min, n, self.rho)


def rho_spaced(first: float, last: float, n: int, rho: float) -> Tensor:
    """``n + 1`` values from ``first`` to ``last``, uniform in their 1/ρ-th power (Karras et al. 2022, eq. 5)."""
    values = torch.linspace(first ** (1 / rho), last ** (1 / rho), n + 1, dtype=torch.float64) ** rho
    values[0], values[-1] = first, last  # the ends are limits: no rounding may step over them
    return values.to(torch.get_default_dtype())
