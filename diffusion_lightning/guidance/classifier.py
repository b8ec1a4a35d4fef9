"""Classifier guidance: towards what a classifier of noisy images takes for the class (Dhariwal & Nichol 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.guidance.base import Guidance
from diffusion_lightning.sde import expand


class ClassifierGuidance(Guidance):
    r"""The score :math:`\nabla\ln p_t(x) + s\,\nabla_x \ln p(y \mid x_t)`, as a denoiser:

    .. math:: D_s(x, t) = D(x, t) + s\,\frac{\sigma^2}{\alpha}\,\nabla_x \ln p(y \mid x_t = x).

    Song et al. 2021 (arXiv:2011.13456), section 5; Dhariwal & Nichol 2021 (arXiv:2105.05233), section 4. At s = 1 and
    with the exact p(y | x_t) it is the exact conditional denoiser.

    Args:
        denoiser: what is steered.
        log_prob: called ``log_prob(x, t)`` with noisy x ``(B, …)`` and times ``(B,)``: ln p(y | x_t) in nats ``(B,)``,
            differentiable in x. Gradients are enabled for it alone, whatever the caller has done.
        scale: s, any finite number; 0 is the unguided denoiser.
        interval: as in :class:`~diffusion_lightning.guidance.base.Guidance`.
        rescale: as there.
        threshold: as there.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        scale: float = 1.0,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(denoiser, interval, rescale, threshold)
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: must be a finite number; 0 is without guidance")
        self.log_prob = log_prob
        self.scale = scale

    @property
    def is_neutral(self) -> bool:
        return self.scale == 0

    def steer(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        own = self.ask(self.denoiser, x, t, **cond)
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(noisy, t).sum(), noisy)
        variance_over_alpha = self.sde.sigma(t) ** 2 / self.sde.alpha(t)
        return own + self.scale * expand(variance_over_alpha, x) * gradient, own
