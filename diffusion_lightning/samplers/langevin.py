"""Annealed Langevin dynamics, the sampler of noise-conditional score networks (Song & Ermon 2019)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_lightning.samplers.noise_level import Denoise, NoiseLevelSampler
from diffusion_lightning.sde import SDE, standard_normal

LARGEST_STEP = 2.0
"""Of the step size at a noise level, in units of σ̃²: the noise comes out twice too strong there, and diverges at 4."""


class AnnealedLangevin(NoiseLevelSampler):
    r"""Langevin dynamics at each noise level in turn, from the largest to the smallest (algorithm 1 of the paper).

    At the level σ̃_i the step size is a_i = ε·σ̃_i²/σ̃_min², and ``steps_per_scale`` times

    .. math:: \tilde x \leftarrow \tilde x + \tfrac12 a_i\,\nabla\ln p_i(\tilde x) + \sqrt{a_i}\,z .

    The levels are those of a discrete process's grid; on a continuous one ``scales`` levels in geometric progression.
    It runs on x̃ = x/α (see :mod:`~diffusion_lightning.samplers.noise_level`), so it fits every linear SDE. The paper
    leaves the noise of σ̃_min in its samples; here a last evaluation removes it (Jolicoeur-Martineau et al. 2021).
    There are levels·steps_per_scale + 1 evaluations.

    Args:
        steps_per_scale: T of the paper, at least 1.
        step_size: ε, positive, in units of x². Stable below 2·σ̃_min²; the paper's 2e-5 suits σ̃_min = 0.01.
        scales: levels on a continuous process, at least 2; a discrete process uses its own.
        t_min: the time of the smallest level, on a grid of the first one from there; the SDE's own if left out.

    Raises:
        ValueError: if an argument is out of its range; when called, if ``step_size`` is unstable at σ̃_min.
    """

    def __init__(
        self, steps_per_scale: int = 100, step_size: float = 2e-5, scales: int = 10, t_min: float | None = None
    ) -> None:
        if not (steps_per_scale >= 1 and steps_per_scale % 1 == 0):
            raise ValueError(f"steps_per_scale={steps_per_scale}: must be at least 1")
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size={step_size}: must be positive")
        if not (scales >= 2 and scales % 1 == 0):
            raise ValueError(f"scales={scales}: must be at least 2")
        super().__init__(steps_per_scale, t_min)
        self.steps_per_scale = steps_per_scale
        self.step_size = step_size
        self.scales = scales

    def check(self, sde: SDE) -> None:
        super().check(sde)
        lowest = self.limits(sde)[1]
        if self.step_size > LARGEST_STEP * lowest**2:
            raise ValueError(
                f"step_size={self.step_size}: Langevin dynamics is unstable at the smallest noise level "
                f"{lowest:.3g} of {type(sde).__name__}: must be at most {LARGEST_STEP * lowest**2} (a tenth of that is "
                "usual); or give a larger t_min, or another sampler"
            )

    def levels(self, sde: SDE) -> list[float]:
        if sde.times is not None:
            times = sde.times.double().flip(0)
            # a time of the grid is one of its own rounding
            return sde.noise_level(times[times >= (self.t_min or 0.0) * (1 - 1e-6)]).tolist()
        first, last = (math.log(level) for level in self.limits(sde))
        return torch.linspace(first, last, self.scales, dtype=torch.float64).exp().tolist()

    def num_steps(self, sde: SDE) -> int:
        return len(self.levels(sde)) * self.steps_per_scale + 1

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        for level in levels:
            size = self.step_size * (level / levels[-1]) ** 2
            for _ in range(self.steps_per_scale):
                score = (denoise(x, level) - x) / level**2
                z = standard_normal(x.shape, device=x.device, generator=generator)
                x = x + 0.5 * size * score + math.sqrt(size) * z
                yield x, level
        yield denoise(x, levels[-1]), 0.0
