"""What `SDE` derives from α and σ alone: it equals the closed forms, and suffices for a process of one's own."""

import pytest
import torch
from torch import Tensor

from diffusion_lightning import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    GaussianMixtureDenoiser,
    Heun,
    KarrasSDE,
    PowerVESDE,
    ProbabilityFlowODE,
    RectifiedFlow,
    SubVPSDE,
)

PROCESSES: list[SDE] = [PowerVESDE(), VESDE(), VPSDE(), SubVPSDE(), KarrasSDE(), CosineVPSDE(), RectifiedFlow()]
PROCESSES += [DiscreteVPSDE(), DiscreteVPSDE(40, schedule="cosine"), DiscreteVESDE()]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_derived_functions_equal_the_closed_forms(sde: SDE, context: type) -> None:
    with context():
        t = torch.linspace(sde.t_min + 0.01 * (sde.T - sde.t_min), sde.T, 50, dtype=torch.float64)
        torch.testing.assert_close(SDE.drift_rate(sde, t), sde.drift_rate(t), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(SDE.diffusion(sde, t), sde.diffusion(t), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(SDE.time_at(sde, sde.noise_level(t)), t, rtol=1e-9, atol=1e-12)


class TrigonometricSDE(SDE):
    """α = cos(πt/2), σ = sin(πt/2): a process of two lines, stopped before α reaches 0."""

    t_min, T = 1e-4, 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(torch.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(torch.pi / 2 * t)


@pytest.mark.parametrize("sampler", [Heun(40), ProbabilityFlowODE(rtol=1e-4, atol=1e-4)], ids=["Heun", "ODE"])
def test_a_process_of_two_lines_samples(sampler: Heun | ProbabilityFlowODE) -> None:
    means, stds = torch.tensor([[-1.0, 0.5], [1.0, -0.5]]), torch.tensor([0.2, 0.1])
    denoiser = GaussianMixtureDenoiser(means, stds, torch.tensor([0.3, 0.7]), TrigonometricSDE())
    x = sampler(denoiser, (4000, 2), generator=torch.Generator().manual_seed(0))
    second = (x - means[1]).norm(dim=1) < (x - means[0]).norm(dim=1)
    assert second.float().mean().item() == pytest.approx(0.7, abs=0.03)  # 4 standard errors
    assert x[~second].std(0).mean().item() == pytest.approx(0.2, rel=0.08)
    assert x[second].std(0).mean().item() == pytest.approx(0.1, rel=0.08)
