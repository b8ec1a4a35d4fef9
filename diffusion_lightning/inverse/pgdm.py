"""ΠGDM: pseudoinverse-guided diffusion models (Song et al. 2023, ICLR, "Pseudoinverse-guided diffusion models for
inverse problems")."""

import math
from typing import Any

from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.sde import expand


class PGDM(Posterior):
    r"""x0 given x_t as a Gaussian around the model's mean D, of one variance r² in all directions:

    .. math:: D + \frac{\sigma^2}{\alpha} \Big(\frac{\partial D}{\partial x_t}\Big)^{\!\top} A^\top
              (r^2 A A^\top + \sigma_y^2 I)^{-1} (y - A D), \qquad
              r^2 = \frac{\tilde\sigma^2 s^2}{\tilde\sigma^2 + s^2}, \quad \tilde\sigma = \sigma / \alpha,

    which is the guess of the paper put into Tweedie's formula. The system is solved in closed form for
    most operators; what it costs is one vector–Jacobian product. Exact for data N(0, s² I). The paper has r² in front,
    too, a weight that its authors chose for their samplers; here Bayes' rule has the last word, and every sampler draws
    the same.

    Args:
        denoiser: as in :class:`~diffusion_lightning.inverse.posterior.Posterior`.
        y: as there.
        operator: as there, linear.
        noise_std: as there.
        data_std: s, the standard deviation of the data, above zero; 1 in the paper.

    Raises:
        ValueError: as there, and if ``data_std`` is not above zero.
    """

    needs_linear = True

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise_std: float = 0.0, data_std: float = 1.0
    ) -> None:
        super().__init__(denoiser, y, operator, noise_std)
        if not 0 < data_std < math.inf:
            raise ValueError(f"data_std={data_std}: must be above zero")
        self.data_std = data_std

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised, transposed = self.linearized(x, t, **cond)
        level = self.sde.noise_level(t) ** 2
        residual = self.residual(denoised)
        variance = expand(level * self.data_std**2 / (level + self.data_std**2), residual)
        v = self.operator.adjoint(self.operator.solve(residual, variance, self.noise_std**2))
        gain = expand(self.sde.sigma(t) ** 2 / self.sde.alpha(t), x)
        return self.consistent(denoised + gain * transposed(v, last=True))
