"""MMPS: moment matching posterior sampling (Rozet et al. 2024, "Learning diffusion priors from observations by
expectation maximization", arXiv:2405.13712)."""

from typing import Any

from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.conjugate_gradients import conjugate_gradients
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.sde import expand


class MMPS(Posterior):
    r"""x0 given x_t as a Gaussian of the model's own mean D and covariance V, which is what its derivative says:

    .. math:: V = \mathrm{Cov}[x_0 \mid x_t] = \frac{\sigma^2}{\alpha}\,\frac{\partial D}{\partial x_t}, \qquad
              D + V A^\top (A V A^\top + \sigma_y^2 I)^{-1} (y - A D)

    (section 4.2; V is Tweedie's formula of second order). The system is solved by conjugate gradients,
    each step of which is one vector–Jacobian product. Exact for Gaussian data, and the nearest to exact for others.

    Args:
        denoiser: as in :class:`~diffusion_lightning.inverse.posterior.Posterior`.
        y: as there.
        operator: as there, linear.
        noise_std: as there.
        iterations: of conjugate gradients, at most, at least 1. Few are enough, and act like a larger σ_y where a
            network's derivative is not the symmetric matrix that it should be.

    Raises:
        ValueError: as there, and if ``iterations`` is below 1.
    """

    needs_linear = True

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise_std: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(denoiser, y, operator, noise_std)
        if not (iterations >= 1 and iterations % 1 == 0):
            raise ValueError(f"iterations={iterations}: must be a whole number of at least 1")
        self.iterations = int(iterations)

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        denoised, transposed = self.linearized(x, t, **cond)
        gain = expand(self.sde.sigma(t) ** 2 / self.sde.alpha(t), x)

        def covariance(v: Tensor) -> Tensor:
            return gain * transposed(v)

        def of_residual(v: Tensor) -> Tensor:
            """A V Aᵀ v + σ_y² v."""
            return self.operator(covariance(self.operator.adjoint(v))) + self.noise_std**2 * v

        v = conjugate_gradients(of_residual, self.residual(denoised), self.iterations)
        return self.consistent(denoised + covariance(self.operator.adjoint(v)))
