"""Answers to "what was it?": pictures of which something was measured, drawn from the posterior."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.inverse.replacement import Replacement
from diffusion_lightning.samplers import DPMSolverPlusPlus, Sampler

METHODS: dict[str, type[Posterior]] = {"Replacement": Replacement}
"""Those that a name stands for."""


def restore(
    denoiser: Denoiser,
    y: Tensor,
    operator: Operator,
    method: str | Callable[..., Posterior] = "Replacement",
    num: int = 8,
    sampler: Sampler | None = None,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """Draw answers to y = A(x0) + n from p(x0 | y).

    Args:
        denoiser: the model.
        y: what was measured of one example, with or without a leading axis of one; or of B of them, ``(B, …)``.
        operator: A.
        method: the name of one, its class, or what makes it of ``(denoiser, y, operator, noise_std)``.
        num: how many answers to each measurement.
        sampler: draws through a method that is a denoiser; DPM-Solver++ of 20 steps if left out.
        noise_std: the standard deviation of n, in the units of ``y``.
        generator: draws the starts and the steps' noise.
        progress: show a bar with rate and time left.
        cond: passed to the denoiser, one entry for each answer.

    Returns:
        ``(num, *shape)``, and ``(num, B, *shape)`` for B > 1 measurements.
    """
    maker = METHODS[method] if isinstance(method, str) else method
    like = operator.adjoint(y)
    posterior = maker(denoiser, y, operator, noise_std)
    sampler = sampler if sampler is not None else DPMSolverPlusPlus(steps=20)
    return sampler(posterior, (num, *like.shape[-3:]), generator=generator, progress=progress, **cond)
