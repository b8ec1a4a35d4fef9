"""What the tests of inverse problems share: exact denoisers, and exact posteriors of linear measurements."""

import torch
from torch import Tensor

from diffusion_lightning import SDE, Denoiser
from diffusion_lightning.sde import expand


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(m, S), of points; it counts what it is asked."""

    def __init__(self, mean: Tensor, covariance: Tensor, sde: SDE) -> None:
        super().__init__(sde)
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)
        self.calls = 0

    def denoise(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        self.calls += 1
        alpha, sigma = expand(self.sde.alpha(t), x).to(self.mean), expand(self.sde.sigma(t), x).to(self.mean)
        noisy = alpha[..., None] ** 2 * self.covariance + sigma[..., None] ** 2 * torch.eye(len(self.mean)).to(x)
        return (
            self.mean
            + alpha * (self.covariance @ torch.linalg.solve(noisy, (x - alpha * self.mean)[..., None]))[..., 0]
        )


def conditional_mean(
    x: Tensor, alpha: float, sigma: float, mean: Tensor, covariance: Tensor, a: Tensor, y: Tensor, noise_std: float
) -> Tensor:
    """E[x0 | x_t, y] of x0 ~ N(m, S): the precisions of the prior, of x_t and of y add up."""
    eye = torch.eye(len(mean)).to(mean)
    prior = torch.linalg.inv(covariance)
    precision = prior + (alpha / sigma) ** 2 * eye + a.T @ a / noise_std**2
    known = prior @ mean + alpha / sigma**2 * x + y @ a / noise_std**2
    return torch.linalg.solve(precision, known.T).T


def gaussian_posterior(
    mean: Tensor, covariance: Tensor, a: Tensor, y: Tensor, noise_std: float
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x0 | y."""
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + noise_std**2 * torch.eye(len(a)).to(a))
    return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance
