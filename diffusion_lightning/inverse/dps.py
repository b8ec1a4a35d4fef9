"""DPS: diffusion posterior sampling (Chung et al. 2023, ICLR, arXiv:2209.14687)."""

import math
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.sde import expand


class DPS(Posterior):
    r"""As if x0 were the model's mean D itself, without a doubt: :math:`p(y \mid x_t) \approx p(y \mid x_0 = D)`.

    .. math:: D - \zeta\,\sigma \sqrt{m}\; \nabla_{x_t} \lVert y - A(D) \rVert

    with m numbers measured. The likelihood's gradient would be that of ‖y − A(D)‖² over 2σ_y², far too large at high
    noise, where D is nearly anything; so Chung et al. divide by the norm instead (algorithm 1, with the ζ_i = ζ′/‖…‖ of
    their experiments), which leaves the gradient of the norm itself. Their step is one of a thousand of one sampler;
    σ√m, the size of the noise in y's space, makes it one that every sampler, process and picture size takes. Any A will
    do that has a gradient. The answers are near y, and are no draws of the posterior. ζ = 2 is a fair
    choice for the mixtures of ``benchmarks/inverse.py``; others are worth a try.

    Args:
        denoiser: as in :class:`~diffusion_lightning.inverse.posterior.Posterior`.
        y: as there.
        operator: as there, linear or not.
        noise_std: as there; it makes no difference, but for what is told about the answers.
        zeta: ζ, zero (the model alone) or above.

    Raises:
        ValueError: as there, and if ``zeta`` is negative.
    """

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise_std: float = 0.0, zeta: float = 2.0
    ) -> None:
        super().__init__(denoiser, y, operator, noise_std)
        if not 0 <= zeta < math.inf:
            raise ValueError(f"zeta={zeta}: must be zero (the model alone) or above")
        self.zeta = zeta

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised, transposed = self.linearized(x, t, **cond)
        with torch.enable_grad():
            mean = denoised.detach().requires_grad_()
            norms = self.residual(mean).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(norms.sum(), mean)
        step = self.zeta * math.sqrt(self.operator.count(self.y)) * self.sde.sigma(t)
        return denoised - expand(step, x) * transposed(gradient, last=True)
