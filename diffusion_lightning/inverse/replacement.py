r"""Replacement: what is known is put in its place at every step (Song et al. 2021, appendix I.2 and I.3)."""

from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.operators import Operator, check_linear
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.sde import expand


class Replacement(Posterior):
    r"""The model's answer, of which the part that was measured is the measurement's: :math:`D + A^+(y - A D)`.

    For inpainting these are the known pixels, for colouring the grey value of each; A⁺ is the pseudo-inverse. Then the
    probability flow takes the known part of the state along x̃ = A⁺y + σ̃·z, which is the measurement noised to each
    level with the noise of the start, and a stochastic sampler renews z: what Song et al. put in place at each step
    comes out of the sampler by itself. (In this form it is the range-null space decomposition of Wang et al. 2023,
    arXiv:2212.00490, eq. 13.)

    The unknown part is answered as if the known part of the state were all that is known of it, and y were not: what is
    drawn agrees with the measurement, and is no draw of the posterior, at any number of steps.

    With noise, the measurement counts where it is the better one, at noise levels σ/α above σ_y, and the model alone
    answers below.

    Args:
        denoiser: as in :class:`~diffusion_lightning.inverse.posterior.Posterior`.
        y: as there.
        operator: as there, linear.
        noise_std: as there.

    Raises:
        ValueError: as there, and if the operator is not linear.
    """

    def __init__(self, denoiser: Denoiser, y: Tensor, operator: Operator, noise_std: float = 0.0) -> None:
        check_linear(operator, "Replacement")
        super().__init__(denoiser, y, operator, noise_std)

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised = self.denoiser.denoise(x, t, **cond)
        self.evaluations = self.denoiser.evaluations
        consistent = denoised + self.operator.pseudo_inverse(self.residual(denoised))
        return torch.where(expand(self.sde.noise_level(t) > self.noise_std, x), consistent, denoised)
