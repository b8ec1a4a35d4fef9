"""SDEdit: a sketch is noised until it could be one of the model's own, and denoised again (Meng et al. 2022, ICLR,
arXiv:2108.01073)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers import DPMSolverPlusPlus
from diffusion_lightning.samplers.noise_level import Denoise, NoiseLevelSampler, RhoSpacedSampler
from diffusion_lightning.sde import SDE, rho_spaced


class SDEdit(NoiseLevelSampler):
    r"""Draws from :math:`\tilde x = \text{picture} + \tilde\sigma_0 z` on, instead of from pure noise (algorithm 1).

    The noise level σ̃₀ = σ/α is the one choice: the larger it is, the better the result is one of the model's, and the
    less it is the picture's. In units of the data: 0.3 to 3 for pictures in [-1, 1].

    Args:
        picture: ``(B, …)``, one for each sample, or ``(1, …)``, the same for all.
        noise_level: σ̃₀, between the process's own at t_min and at T.
        sampler: takes the steps, of which all are below σ̃₀; DPM-Solver++ of 20 steps if left out.

    Raises:
        ValueError: if ``noise_level`` is not above zero, or the picture is not finite.
        TypeError: for a sampler that does not step by noise levels.
    """

    def __init__(self, picture: Tensor, noise_level: float = 1.0, sampler: RhoSpacedSampler | None = None) -> None:
        sampler = sampler if sampler is not None else DPMSolverPlusPlus()
        if not isinstance(sampler, RhoSpacedSampler):
            raise TypeError(f"sampler={type(sampler).__name__}: must be Heun or DPMSolverPlusPlus")
        super().__init__(sampler.steps, sampler.t_min)
        if not noise_level > 0:
            raise ValueError(f"noise_level={noise_level}: must be above zero")
        if not picture.isfinite().all():
            raise ValueError("picture: holds NaN or infinite values: all must be finite")
        self.picture, self.noise_level, self.sampler = picture, noise_level, sampler

    def check(self, sde: SDE) -> None:
        super().check(sde)
        highest, lowest = self.limits(sde)
        if not lowest < self.noise_level <= highest:
            raise ValueError(
                f"noise_level={self.noise_level:g}: must be above {lowest:.3g} and at most {highest:.3g} for this "
                f"{type(sde).__name__}"
            )

    def levels(self, sde: SDE) -> list[float]:
        lowest = self.limits(sde)[1]
        steps = self.sampler.steps
        if steps == 1:
            return [self.noise_level]
        return rho_spaced(self.noise_level, lowest, steps - 1, self.sampler.rho).tolist()

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        if self.picture.shape[1:] != x.shape[1:] or len(self.picture) not in (1, len(x)):
            raise ValueError(
                f"picture: has shape {tuple(self.picture.shape)}: must be {tuple(x.shape)}, or one picture for all"
            )
        sde = denoiser.sde
        ends = torch.tensor([sde.T], dtype=torch.float64)
        start = sde.time_at(torch.tensor([self.noise_level], dtype=torch.float64)).clamp(sde.t_min, sde.T)
        z = x / sde.sigma(ends).item()
        noised = self.picture.to(x) + self.noise_level * z
        yield from super().iterate(denoiser, sde.alpha(start).item() * noised, generator, **cond)

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        return self.sampler.walk(denoise, x, levels, generator)
