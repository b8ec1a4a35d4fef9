r"""The forward process: how a clean image becomes noise.

Every process here is a linear stochastic differential equation

.. math:: \mathrm{d}x = f(t)\,x\,\mathrm{d}t + g(t)\,\mathrm{d}w, \qquad t \in [t_{\min}, T],

whose marginals are Gaussian, :math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,z` with :math:`z \sim \mathcal{N}(0, I)`.
The four functions are tied by (Särkkä & Solin 2019, section 6.1)

.. math:: \alpha' = f\alpha, \qquad (\sigma^2)' = 2f\sigma^2 + g^2 .

Symbols: α signal scale, σ noise standard deviation, f drift rate, g diffusion coefficient, and σ/α the
*noise level*, the one number on which the difficulty of denoising depends (Karras et al. 2022, section 2).
Times are tensors of shape ``(B,)``; images and points ``x`` are ``(B, …)``.

Discrete processes (DDPM, NCSN) have a grid of times and are defined between them too, such that the exact step from
one time of the grid to the next is the paper's; so they are processes like the others.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp

BISECTIONS = 60
"""Enough to halve any interval of times down to the spacing of float64."""

NEWTON_STEPS = 12
"""Enough for a monotone cubic between two neighbours of a grid, within a bracket that halves where Newton fails."""


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
        times: the grid of a discrete process, increasing, ``(N,)``; ``None`` for a continuous one.
    """

    T: float = 1.0
    t_min: float = 1e-5
    variance_exploding: bool = False

    @property
    def times(self) -> Tensor | None:
        return None

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

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α'(t) = fα and σ'(t) = (½g² + fσ²)/σ, each with the shape of ``t``."""
        f, sigma = self.drift_rate(t), self.sigma(t)
        return f * self.alpha(t), (0.5 * self.diffusion(t) ** 2 + f * sigma**2) / sigma

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
        normal = torch.distributions.Normal(0.0, self._prior_std, validate_args=False)  # to look would be to wait
        return normal.log_prob(z).flatten(1).sum(1)

    def timesteps(self, n: int) -> Tensor:
        """The ``n + 1`` decreasing times from T to t_min that suit this process: here uniform in t."""
        _require(n >= 1, f"steps={n}: at least 1 step is needed")
        return torch.linspace(self.T, self.t_min, n + 1, dtype=torch.float64).to(torch.get_default_dtype())

    def uniform_times(self, u: Tensor) -> Tensor:
        """``u`` in [0, 1) as times, uniformly: t_min + (T − t_min)·u, or each time of the grid equally often."""
        return self.t_min + (self.T - self.t_min) * u

    def nearest_times(self, t: Tensor) -> Tensor:
        """The times of the grid nearest to ``t``; ``t`` itself without a grid."""
        return t

    def check_t_min(self, t_min: float) -> None:
        """Raise a ValueError unless ``t_min``, which is to take the place of the process's own, is in [t_min, T)."""
        _require(
            self.t_min <= t_min < self.T,
            f"t_min={t_min}: must be in [{self.t_min:g}, {self.T:g}), the times of the process",
        )

    def check_times(self, t: Tensor, batch: int) -> None:
        """Raise a ValueError unless ``t`` is ``(batch,)`` and, where looking costs no waiting, in [t_min, T].

        A compiled or exported program cannot look at values, and does not.
        """
        _require(t.shape == (batch,), f"t has shape {tuple(t.shape)}: must be ({batch},), a time for each example")
        if t.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = t.aminmax()
            # a relative margin for rounding; written so that NaN fails
            within = bool(low >= self.t_min * (1 - 1e-5)) and bool(high <= self.T * (1 + 1e-5))
            _require(within, f"t in [{low.item():g}, {high.item():g}]: must be in [{self.t_min:g}, {self.T:g}]")

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
        _require(1 < sigma < math.inf, f"sigma={sigma}: must be above 1")
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
            0 < sigma_min < sigma_max < math.inf,
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max",
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
        _require(
            0 < beta_min <= beta_max < math.inf,
            f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max",
        )
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


class _VariancePreserving(SDE):
    """α² + σ² = 1, hence g² = −2f and, from αα' + σσ' = 0, rates without cancellation."""

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self.drift_rate(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_rate = self.drift_rate(t) * self.alpha(t)
        return alpha_rate, -self.alpha(t) * alpha_rate / self.sigma(t)


class VPSDE(_LinearBeta, _VariancePreserving):
    r"""The variance-preserving SDE: dx = −½β(t)x dt + √β(t) dw, so that α² + σ² = 1; t ∈ [1e-5, 1].

    β(t) runs linearly from β_min to β_max (Song et al. 2021, eq. 32): the limit of DDPM (Ho et al. 2020).

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), at least β_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._beta_integral(t)))

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

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -0.5 * beta * alpha, beta * alpha**2

    def time_at(self, noise_level: Tensor) -> Tensor:
        # σ/α = 2 sinh(B/2)
        return self._time_at_integral(2 * torch.asinh(noise_level / 2))


class CosineVPSDE(_VariancePreserving):
    r"""The variance-preserving process with a cosine for α: α(t) = cos φ(t)/cos φ(0), φ(t) = ½π(t + s)/(1 + s).

    The schedule of Nichol & Dhariwal (2021, eq. 17) in continuous time, with β(t) = π/(1 + s)·tan φ(t). As β grows
    without bound towards t = 1, where they clip it, the process ends at T = 0.9946 (Lu et al. 2022, appendix D.4),
    where α = 0.008.

    Args:
        s: the offset that keeps the noise from vanishing too fast near t = 0, positive.
    """

    T = 0.9946

    def __init__(self, s: float = 0.008) -> None:
        _require(0 < s < math.inf, f"s={s}: must be positive")
        self.s = s
        self._rate = 0.5 * math.pi / (1 + s)
        self._start = s * self._rate  # φ(0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._phase(t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # 1 − α², as a product: the difference would cancel at small t
        return torch.sqrt(torch.sin(self._rate * t) * torch.sin(self._phase(t) + self._start)) / math.cos(self._start)

    def drift_rate(self, t: Tensor) -> Tensor:
        return -self._rate * torch.tan(self._phase(t))

    def time_at(self, noise_level: Tensor) -> Tensor:
        # cos φ = cos φ(0)/√(1 + (σ/α)²), as a tangent, which is well conditioned at both ends
        opposite = torch.sqrt(math.sin(self._start) ** 2 + noise_level**2)
        return (torch.atan2(opposite, torch.full_like(opposite, math.cos(self._start))) - self._start) / self._rate

    def _phase(self, t: Tensor) -> Tensor:
        return self._rate * (t + self.s)


class RectifiedFlow(SDE):
    r"""Straight lines from data to noise: α = 1 − t, σ = t (Liu et al. 2023; Lipman et al. 2023).

    As a process it has f = −1/(1 − t) and g² = 2t/(1 − t), which are infinite at t = 1, and a score that is infinite at
    t = 0; so it runs on t ∈ [0.001, 0.999]. What is left of the image at T is a thousandth.
    """

    T = 0.999
    t_min = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def drift_rate(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return noise_level / (1 + noise_level)


class KarrasSDE(_VarianceExploding):
    r"""EDM's process: σ(t) = t, α = 1, g(t) = √(2t), on t ∈ [σ_min, σ_max] (Karras et al. 2022, section 3).

    Args:
        sigma_min: the smallest time and noise, positive.
        sigma_max: the largest.
        rho: the exponent of the grid of :meth:`timesteps`; larger puts more steps at low noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _require(
            0 < sigma_min < sigma_max < math.inf,
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max",
        )
        _require(1 <= rho < math.inf, f"rho={rho}: must be at least 1")
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
        return rho_spaced(self.T, self.t_min, n, self.rho).to(torch.get_default_dtype())


class _Discrete(SDE):
    """A process on the grid t_i = (i + 1)/N, i = 0 … N − 1, with T = 1 and t_min = 1/N."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.t_min = 1 / size

    @property
    def times(self) -> Tensor:
        """The grid, ``(N,)``, increasing."""
        return torch.arange(1, self._size + 1) / self._size

    def timesteps(self, n: int) -> Tensor:
        """``n + 1`` times of the grid from T to t_min, spread evenly; with n ≥ N also times in between."""
        if n >= self._size:
            return super().timesteps(n)
        _require(n >= 1, f"steps={n}: at least 1 step is needed")
        times = torch.linspace(self._size, 1, n + 1, dtype=torch.float64).round() / self._size
        return times.to(torch.get_default_dtype())

    def uniform_times(self, u: Tensor) -> Tensor:
        return ((u * self._size).floor().clamp(max=self._size - 1) + 1) / self._size

    def nearest_times(self, t: Tensor) -> Tensor:
        return (t * self._size).round().clamp(1, self._size) / self._size


class DiscreteVPSDE(_Discrete, _VariancePreserving):
    r"""DDPM's process: x_i = √(1 − β_i)·x_{i−1} + √β_i·z at the times t_i = (i + 1)/N (Ho et al. 2020, eq. 2).

    α(t_i)² = ∏_{j ≤ i} (1 − β_j). Between the times ln α is a monotone cubic (Fritsch & Butland 1984): smooth, as ODE
    solvers need it, and such that the exact step between neighbours of the grid is DDPM's. As N grows with N·β fixed it
    becomes :class:`VPSDE` with β_min = N·beta_start and β_max = N·beta_end (Song et al. 2021, appendix B).

    Args:
        num_steps: N, at least 2.
        beta_start: β_0 of the linear schedule, positive.
        beta_end: β_{N−1} of the linear schedule, at least ``beta_start`` and below 1.
        schedule: ``"linear"``, or ``"cosine"`` (Nichol & Dhariwal 2021, eq. 17, β_i at most 0.999), which has no use
            for the two betas.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        schedule: Literal["linear", "cosine"] = "linear",
    ) -> None:
        _require(num_steps >= 2 and num_steps % 1 == 0, f"num_steps={num_steps}: must be at least 2")
        _require(
            0 < beta_start <= beta_end < 1,
            f"beta_start={beta_start}, beta_end={beta_end}: need 0 < beta_start <= beta_end < 1",
        )
        _require(schedule in ("linear", "cosine"), f"schedule={schedule!r}: must be 'linear' or 'cosine'")
        super().__init__(num_steps)
        self.num_steps, self.beta_start, self.beta_end, self.schedule = num_steps, beta_start, beta_end, schedule
        if schedule == "linear":
            self._betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        else:
            log_alpha = CosineVPSDE().alpha(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)).log()
            self._betas = (-torch.expm1(2 * log_alpha.diff())).clamp(max=0.999)
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def betas(self) -> Tensor:
        """β_i, ``(N,)``, float64."""
        return self._betas

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)[0]))

    def drift_rate(self, t: Tensor) -> Tensor:
        return self._log_alpha(t)[1]

    def time_at(self, noise_level: Tensor) -> Tensor:
        log_alpha, (table, rises, _) = -0.5 * torch.log1p(noise_level**2), self._table(noise_level)
        i = torch.searchsorted(-table, -log_alpha).clamp(1, self._size) - 1
        u = (log_alpha - table[i]) / rises[i]
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(NEWTON_STEPS):
            value, rate = self._cubic(i, u)
            low, high = torch.where(value > log_alpha, u, low), torch.where(value > log_alpha, high, u)
            newton = u - (value - log_alpha) / rate
            u = torch.where((low <= newton) & (newton <= high), newton, (low + high) / 2)
        return (i + u) / self._size

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ln α(t) and its derivative."""
        position = t * self._size
        i = position.floor().clamp(0, self._size - 1).long()
        value, rate = self._cubic(i, position - i)
        return value, rate * self._size

    def _cubic(self, i: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Hermite's cubic for ln α at (i + u)/N, 0 ≤ u ≤ 1, and its derivative in u."""
        table, rises, slopes = self._table(u)
        rise, m0, m1 = rises[i], slopes[i], slopes[i + 1]
        square, cube = 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise
        return table[i] + u * (m0 + u * (square + u * cube)), m0 + u * (2 * square + 3 * u * cube)

    def _table(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ln α at i/N, i = 0 … N, its rises to the next and its slopes, where and as ``like`` is; moved there once."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            rises = 0.5 * torch.log1p(-self._betas)
            # the harmonic mean of the neighbours' keeps the cubic monotone
            inner = 2 * rises[1:] * rises[:-1] / (rises[1:] + rises[:-1])
            slopes = torch.cat([rises[:1], inner, rises[-1:]])
            table = torch.cat([rises.new_zeros(1), rises.cumsum(0)])
            self._tables[key] = table.to(like), rises.to(like), slopes.to(like)
        return self._tables[key]


class DiscreteVESDE(_Discrete, _VarianceExploding):
    r"""NCSN's process: noise of σ_i = σ_min·(σ_max/σ_min)^{i/(N−1)} at the times t_i = (i + 1)/N (Song & Ermon 2019).

    Between the times ln σ is linear. As N grows it becomes :class:`VESDE`.

    Args:
        num_scales: N, at least 2.
        sigma_min: σ_0, positive.
        sigma_max: σ_{N−1}, above ``sigma_min``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, num_scales: int = 10, sigma_min: float = 0.01, sigma_max: float = 1.0) -> None:
        _require(num_scales >= 2 and num_scales % 1 == 0, f"num_scales={num_scales}: must be at least 2")
        _require(
            0 < sigma_min < sigma_max < math.inf,
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max",
        )
        super().__init__(num_scales)
        self.num_scales, self.sigma_min, self.sigma_max = num_scales, sigma_min, sigma_max
        self._log_rate = math.log(sigma_max / sigma_min) * num_scales / (num_scales - 1)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp((t - self.t_min) * self._log_rate)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_rate)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return self.t_min + torch.log(noise_level / self.sigma_min) / self._log_rate


def rho_spaced(first: float, last: float, n: int, rho: float) -> Tensor:
    """``n + 1`` values from ``first`` to ``last``, even in their 1/ρ-th power (Karras et al. 2022, eq. 5); float64."""
    values = torch.linspace(first ** (1 / rho), last ** (1 / rho), n + 1, dtype=torch.float64) ** rho
    values[0], values[-1] = first, last  # the ends are limits: no rounding may step over them
    return values
