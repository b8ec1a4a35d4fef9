"""Twisted sequential Monte Carlo: particles that are right in the limit (Wu et al. 2023, NeurIPS, "Practical and
asymptotically exact conditional sampling in diffusion models", arXiv:2306.17775)."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior_sampler import PosteriorSampler, ancestral, normal_like
from diffusion_lightning.samplers.noise_level import Denoise


class TwistedSMC(PosteriorSampler):
    r"""A population of particles for each sample, proposed by a guess of p(y | x_t) and weighted by what it gets wrong.

    With the guess p̃_t(y | x̃), the twisting function, a step of the population of a sample is (algorithm 1)

    .. math:: \tilde x' \sim q = \mathcal N\big(m + (\tilde\sigma^2 - \tilde\sigma'^2)
              \nabla \ln \tilde p_t(y \mid \tilde x),\ s^2\big), \qquad
              w = \frac{p(\tilde x' \mid \tilde x)\; \tilde p_{t'}(y \mid \tilde x')}
              {q(\tilde x')\; \tilde p_t(y \mid \tilde x)},

    with the ancestral step's own m and s, and particles are drawn anew by their weights where these have become too
    unequal. The weights mend whatever the guess gets wrong, so with ever more particles and steps the samples are the
    posterior's. Each sample is drawn from a population of its own: samples are independent, and cost ``particles``
    times as much as one. (Annealed Langevin steps on the posterior, the alternative, are right in the limit of ever
    more steps, and do not pass from one mode to another.)

    The guess is ΠGDM's, N(y; A D, r² A Aᵀ + σ_y² I) with r² = σ̃²s²/(σ̃² + s²) of data of standard deviation s; for an
    operator that is not linear, N(y; A(D), (r² + σ_y²) I).

    Args:
        y: as in :class:`~diffusion_lightning.inverse.posterior_sampler.PosteriorSampler`.
        operator: as there, linear or not.
        noise_std: as there.
        steps: as there.
        particles: of each population, at least 1.
        data_std: s, above zero.
        resample_below: the effective share of a population, (Σw)²/(K Σw²), below which it is drawn anew, in [0, 1].
        rho: as there.
        t_min: as there.

    Raises:
        ValueError: as there, and for an argument out of its range.
    """

    def __init__(
        self,
        y: Tensor,
        operator: Operator,
        noise_std: float = 0.0,
        steps: int = 20,
        particles: int = 8,
        data_std: float = 1.0,
        resample_below: float = 0.5,
        rho: float = 7.0,
        t_min: float | None = None,
    ) -> None:
        super().__init__(y, operator, noise_std, steps, rho, t_min)
        if not (particles >= 1 and particles % 1 == 0):
            raise ValueError(f"particles={particles}: must be a whole number of at least 1")
        if not data_std > 0:
            raise ValueError(f"data_std={data_std}: must be above zero")
        if not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below={resample_below}: must be in [0, 1]")
        self.particles, self.data_std, self.resample_below = int(particles), data_std, resample_below

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        count = self.particles
        many = {n: v.repeat_interleave(count, 0) if isinstance(v, Tensor) else v for n, v in cond.items()}
        starts = denoiser.sde.prior((len(x) * count, *x.shape[1:]), device=x.device, generator=generator).to(x)
        starts[::count] = x
        yield from super().iterate(denoiser, starts, generator, **many)

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        count = self.particles
        denoised, log_guess, gradient = self._twisted(denoise, x, levels[0])
        log_weights = log_guess.unflatten(0, (-1, count))
        for level, next_level in pairwise(levels):
            chosen = self._resampled(log_weights, generator)
            x, denoised, log_guess, gradient = (each[chosen] for each in (x, denoised, log_guess, gradient))
            log_weights = torch.where(self._is_degenerate(log_weights), 0.0, log_weights)

            mean, std = ancestral(x, denoised, level, next_level)
            shift = (level**2 - next_level**2) * gradient
            z = normal_like(x, generator)
            x = mean + shift + std * z
            # ln p/q of the step taken: both are normal, of one standard deviation
            log_ratio = -0.5 * ((z + shift / std) ** 2 - z**2).flatten(1).sum(1)
            before = log_guess
            denoised, log_guess, gradient = self._twisted(denoise, x, next_level)
            log_weights = log_weights + (log_ratio + log_guess - before).unflatten(0, (-1, count))
            yield x[::count], next_level
        one = torch.multinomial(log_weights.softmax(1).cpu(), 1, generator=generator)[:, 0].to(x.device)
        chosen = torch.arange(len(one), device=x.device) * count + one
        yield self.consistent(denoised)[chosen], 0.0

    def of_each(self) -> Tensor:
        # of each particle of a population
        return self.y if len(self.y) == 1 else self.y.repeat_interleave(self.particles, 0)

    def _twisted(self, denoise: Denoise, x: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
        """D, ln p̃(y | x̃) but for a constant, and its gradient."""
        variance = (level * self.data_std) ** 2 / (level**2 + self.data_std**2)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, level)
            residual = self.residual(denoised)
            solved = residual.detach()
            if self.operator.is_linear:
                solved = self.operator.solve(solved, variance, self.noise_std**2)
            else:
                solved = solved / (variance + self.noise_std**2)
            (gradient,) = torch.autograd.grad(-(residual * solved).sum(), x)
        return denoised.detach(), -0.5 * (residual.detach() * solved).flatten(1).sum(1), gradient

    def _is_degenerate(self, log_weights: Tensor) -> Tensor:
        """Which populations, ``(B, 1)``, are to be drawn anew."""
        weights = log_weights.softmax(1)
        return 1 / (weights**2).sum(1, keepdim=True) < self.resample_below * self.particles

    def _resampled(self, log_weights: Tensor, generator: torch.Generator | None) -> Tensor:
        """The particles to go on with, by systematic resampling where a population is degenerate, ``(B·K,)``."""
        batch, count = log_weights.shape
        offset = torch.rand(batch, 1, generator=generator, device=generator.device if generator else None)
        points = (torch.arange(count) + offset.cpu()) / count
        edges = log_weights.double().softmax(1).cumsum(1).cpu()
        drawn = torch.searchsorted(edges, points.double()).clamp(max=count - 1)
        same = torch.arange(count).expand(batch, count)
        chosen = torch.where(self._is_degenerate(log_weights).cpu(), drawn, same)
        return (chosen + count * torch.arange(batch)[:, None]).flatten().to(log_weights.device)
