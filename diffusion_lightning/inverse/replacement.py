"""Replacement: what is known is put in its place at every step (Song et al. 2021, appendix I.2 and I.3)."""

from typing import Any

from torch import Tensor

from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.sde import expand


class Replacement(Posterior):
    r"""The model's answer, of which the part that was measured is the measurement's: :math:`D + A^+(y - A D)`.

    For inpainting that part are the known pixels, for colouring the grey value of each; A⁺ is the pseudo-inverse. Then
    the probability flow takes this part of the state along x̃ = A⁺y + σ̃·z, which is the measurement noised to each
    level by the noise of the start, and a stochastic sampler renews z: what Song et al. put in place at each step comes
    out of the sampler by itself. (In this form it is the range–null space decomposition of Wang et al. 2023,
    arXiv:2212.00490, eq. 13.)

    The rest is answered as if the noised state were all that is known of the measurement. So what is drawn agrees with
    it, and is no draw of the posterior at any number of steps.

    With noise, A⁺ is :math:`A^\top (A A^\top + (\sigma_y / \tilde\sigma)^2 I)^{-1}`: the measurement counts where it is
    the better witness, at noise levels σ̃ above σ_y, and the model below.
    """

    needs_linear = True

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised = self.denoiser.denoise(x, t, **cond)
        self.evaluations = self.denoiser.evaluations
        residual = self.residual(denoised)
        doubt = expand(self.noise_std / self.sde.noise_level(t), residual) ** 2
        return denoised + self.operator.adjoint(self.operator.solve(residual, shift=doubt))
