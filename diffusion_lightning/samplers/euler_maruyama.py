r"""Euler–Maruyama on the reverse-time SDE (Anderson 1982; Song et al. 2021, eq. 6).

.. math:: \mathrm{d}x = \big[f x - g^2\,\nabla \ln p_t(x)\big]\,\mathrm{d}t + g\,\mathrm{d}\bar w
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers.base import StepSampler, intervals
from diffusion_lightning.sde import expand, standard_normal


def reverse_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """One Euler–Maruyama step of the reverse SDE, from t down to s.

    Returns:
        The mean x − (f·x − g²·score)(t − s), shape of ``x``, and the standard deviation g√(t − s), ``(B, 1, …)``.
    """
    sde = denoiser.sde
    dt, g = expand(t - s, x), expand(sde.diffusion(t), x)
    mean = x - (sde.drift(x, t) - g**2 * denoiser.score(x, t, **cond)) * dt
    return mean, g * dt.sqrt()


class EulerMaruyama(StepSampler):
    """The reverse SDE by Euler–Maruyama; one evaluation a step.

    Args:
        steps: how many.
        t_min: where to stop; the SDE's own ``t_min`` if left out. The tutorial stops at 1e-3.
    """

    def __init__(self, steps: int = 500, t_min: float | None = None) -> None:
        super().__init__(steps, t_min)

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        for t, s, last in intervals(self.times(denoiser.sde, self.steps, x), len(x)):
            mean, std = reverse_step(denoiser, x, t, s, **cond)
            x = mean if last else mean + std * standard_normal(x.shape, device=x.device, generator=generator)
            yield x
