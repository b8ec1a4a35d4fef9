"""RePaint: inpainting that goes back and forth, so that the unknown part comes to fit the known one (Lugmayr et al.
2022, CVPR, arXiv:2201.09865)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior_sampler import PosteriorSampler, ancestral, normal_like
from diffusion_lightning.samplers.noise_level import Denoise
from diffusion_lightning.sde import SDE


class RePaint(PosteriorSampler):
    r"""Ancestral steps in which the known part is the measurement, noised; of ``jump_length`` steps each is taken
    ``resamplings`` times, noised again in between (algorithm 1).

    .. math:: \tilde x' = m \odot (y + \tilde\sigma' z) + (1 - m) \odot \tilde x'_{\text{model}}, \qquad
              \tilde x = \tilde x' + \sqrt{\tilde\sigma^2 - \tilde\sigma'^2}\, z'

    are the step down (eq. 8) and the way back up; for other linear operators m is A⁺A, and m·y is A⁺y. With noise, the
    measurement is noised by as much less, and below σ_y the model goes on alone, without going back; A⁺ is then as in
    :class:`~diffusion_lightning.inverse.replacement.Replacement`. The more resamplings, the less the
    seams are seen; what is drawn is no draw of the posterior all the same.

    Args:
        y: as in :class:`~diffusion_lightning.inverse.posterior_sampler.PosteriorSampler`.
        operator: as there, linear.
        noise_std: as there.
        steps: as there, of one way down.
        jump_length: steps of one jump back, at least 1; the paper's j is 10 of 250 steps.
        resamplings: how many times each is taken, at least 1, which is without jumps; the paper's r is 10.
        rho: as there.
        t_min: as there.

    Raises:
        ValueError: as there, and if ``jump_length`` or ``resamplings`` is below 1.
    """

    needs_linear = True

    def __init__(
        self,
        y: Tensor,
        operator: Operator,
        noise_std: float = 0.0,
        steps: int = 20,
        jump_length: int = 2,
        resamplings: int = 5,
        rho: float = 7.0,
        t_min: float | None = None,
    ) -> None:
        super().__init__(y, operator, noise_std, steps, rho, t_min)
        for name, value in (("jump_length", jump_length), ("resamplings", resamplings)):
            if not (value >= 1 and value % 1 == 0):
                raise ValueError(f"{name}={value}: must be a whole number of at least 1")
        self.jump_length, self.resamplings = int(jump_length), int(resamplings)

    def num_steps(self, sde: SDE) -> int:
        return len(self._schedule(self.levels(sde)))

    def _schedule(self, levels: list[float]) -> list[int]:
        """The index of the noise level that each step starts from; where it falls, there is a jump back before."""
        ends = [at for at in range(self.jump_length, self.steps, self.jump_length) if levels[at] >= self.noise_std]
        left = dict.fromkeys(ends, self.resamplings - 1)
        visited, at = [], 0
        while at < self.steps:
            visited.append(at)
            at += 1
            if left.get(at, 0):
                left[at] -= 1
                at -= self.jump_length
        return visited

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        schedule, before = self._schedule(levels), 0
        levels = [*levels, 0.0]
        for i in schedule:
            if i < before:
                x = x + math.sqrt(levels[i] ** 2 - levels[before] ** 2) * normal_like(x, generator)
            level, next_level = levels[i], levels[i + 1]
            mean, std = ancestral(x, denoise(x, level), level, next_level)
            x = self._with_known(mean + std * normal_like(x, generator), next_level, generator)
            before = i + 1
            yield x, next_level

    def _with_known(self, x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
        """What was measured, noised to a level, in its place."""
        if level < self.noise_std:
            return x
        noise = math.sqrt(level**2 - self.noise_std**2) * normal_like(x, generator)
        doubt = (self.noise_std / level) ** 2 if level > 0 else 0.0
        known = self.residual(x) + self.operator(noise)
        return x + self.operator.adjoint(self.operator.solve(known, shift=doubt))
