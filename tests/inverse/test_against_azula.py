"""A second opinion: azula's MMPS, of the same model on the same problem."""

import pytest
import torch
from exact_posteriors import GaussianDenoiser
from torch import Tensor

from diffusion_lightning import MMPS, VPSDE, Linear

azula = pytest.importorskip("azula", reason="azula is not installed (pip install azula)")


def test_mmps_is_azulas() -> None:
    """Where the model is exact, and where it is not: at one, two and three products of conjugate gradients."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    sde = VPSDE()
    factor = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.4, 0.5]], dtype=torch.float64)
    inside = GaussianDenoiser(torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64), factor @ factor.T, sde)
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0], [0.3, 0.3, 0.3]], dtype=torch.float64)
    y, x = torch.tensor([[0.9, -0.7, 0.2]], dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    class Theirs(Denoiser):
        """Our model as azula has them."""

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return sde.alpha(t), sde.sigma(t)

        def forward(self, x_t: Tensor, t: Tensor, **cond: object) -> DiracPosterior:
            return DiracPosterior(mean=inside.denoise(x_t, t.expand(len(x_t))))

    t = torch.tensor(0.4, dtype=torch.float64)
    noise = IsotropicCovariance(torch.tensor(0.3**2, dtype=torch.float64))
    for iterations in (1, 2, 3):
        theirs = MMPSDenoiser(Theirs(), y.expand(5, 3), lambda x: x @ matrix.T, noise, "cg", iterations)
        ours = MMPS(inside, y, Linear(matrix), 0.3, iterations)
        torch.testing.assert_close(ours.denoise(x, t.expand(5)), theirs(x, t).mean, rtol=1e-8, atol=1e-8)
