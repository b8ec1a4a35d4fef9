r"""Where all is Gaussian the posterior is N(m, V) in closed form: the denoisers that are exact there are held to it."""

from functools import partial

import pytest
import torch
from exact_posteriors import GaussianDenoiser, conditional_mean, gaussian_posterior
from torch import Tensor

from diffusion_lightning import (
    DDIM,
    DDPM,
    DPS,
    MLP,
    MMPS,
    PGDM,
    AncestralPredictor,
    DPMSolverPlusPlus,
    EulerMaruyama,
    Heun,
    Inpainting,
    KarrasPreconditioning,
    LangevinCorrector,
    Linear,
    NetworkDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    Replacement,
    ReverseDiffusionPredictor,
    Sampler,
    TwistedSMC,
    restore,
)
from diffusion_lightning.sde import SDE, VESDE, VPSDE, CosineVPSDE, KarrasSDE, RectifiedFlow, SubVPSDE

SDES: dict[str, SDE] = {
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "flow": RectifiedFlow(),
    "karras": KarrasSDE(),
}
NOISE_STD = 0.3


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, S, A and y: three dimensions, two of which are measured, mixed."""
    mean = torch.tensor([0.3, -0.5, 0.1], dtype=dtype)
    factor = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.4, 0.5]], dtype=dtype)
    a = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0]], dtype=dtype)
    return mean, factor @ factor.T, a, torch.tensor([[0.9, -0.7]], dtype=dtype)


@pytest.mark.parametrize("name", SDES)
def test_mmps_is_the_exact_conditional_mean(name: str) -> None:
    sde = SDES[name]
    mean, covariance, a, y = problem()
    posterior = MMPS(GaussianDenoiser(mean, covariance, sde), y, Linear(a), NOISE_STD, iterations=4)
    for level in (0.05, 0.5, 5.0):
        t = sde.time_at(torch.tensor([level], dtype=torch.float64))
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        exact = conditional_mean(x, alpha, sigma, mean, covariance, a, y, NOISE_STD)
        torch.testing.assert_close(posterior.denoise(x, t.expand(6)), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("data_std", [1.0, 0.4])
def test_pgdm_is_the_exact_conditional_mean_of_isotropic_data(name: str, data_std: float) -> None:
    sde = SDES[name]
    a, y = problem()[2:]
    mean, covariance = torch.zeros(3, dtype=torch.float64), data_std**2 * torch.eye(3, dtype=torch.float64)
    posterior = PGDM(GaussianDenoiser(mean, covariance, sde), y, Linear(a), NOISE_STD, data_std=data_std)
    for level in (0.05, 0.5, 5.0):
        t = sde.time_at(torch.tensor([level], dtype=torch.float64))
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        exact = conditional_mean(x, alpha, sigma, mean, covariance, a, y, NOISE_STD)
        torch.testing.assert_close(posterior.denoise(x, t.expand(6)), exact, rtol=1e-5, atol=1e-5)


def test_without_noise_the_answer_is_the_limit_of_little_noise() -> None:
    sde = SDES["karras"]
    mean, covariance, a, y = problem()
    posterior = MMPS(GaussianDenoiser(mean, covariance, sde), y, Linear(a), 0.0, iterations=4)
    x, t = torch.randn(6, 3, dtype=torch.float64), torch.full((6,), 0.7, dtype=torch.float64)
    exact = conditional_mean(x, 1.0, 0.7, mean, covariance, a, y, 1e-5)
    torch.testing.assert_close(posterior.denoise(x, t), exact, rtol=1e-5, atol=1e-5)


SAMPLERS: dict[str, tuple[str, Sampler, float]] = {
    "heun": ("karras", Heun(40), 0.03),
    "heun, churned": ("karras", Heun(60, churn=20), 0.05),
    "dpm-solver++": ("vp", DPMSolverPlusPlus(40), 0.03),
    "flow ode": ("flow", ProbabilityFlowODE(rtol=1e-4, atol=1e-4), 0.03),
    "ddim": ("vp", DDIM(200), 0.05),
    "ddpm": ("vp", DDPM(300), 0.05),
    "euler-maruyama": ("vp", EulerMaruyama(500), 0.06),
    "ancestral": ("ve", PredictorCorrector(200, AncestralPredictor(), None), 0.06),
    "predictor-corrector": ("subvp", PredictorCorrector(300, ReverseDiffusionPredictor(), LangevinCorrector()), 0.08),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_the_posteriors(name: str) -> None:
    """Mean and covariance, each within some hundredths: what the sampler errs by, and 4,000 samples vary by."""
    process, sampler, tolerance = SAMPLERS[name]
    mean, covariance, a, y = problem(torch.float32)
    denoiser = GaussianDenoiser(mean, covariance, SDES[process])
    samples = restore(
        denoiser,
        y,
        Linear(a),
        partial(MMPS, iterations=2),
        num=4000,
        sampler=sampler,
        noise_std=NOISE_STD,
        generator=torch.Generator().manual_seed(0),
        batch_size=4000,
    )
    m, v = gaussian_posterior(mean, covariance, a, y[0], NOISE_STD)
    torch.testing.assert_close(samples.mean(0), m, rtol=0, atol=tolerance)
    torch.testing.assert_close(samples.T.cov(), v, rtol=0, atol=tolerance)


def test_particles_are_the_posteriors() -> None:
    mean, covariance, a, y = problem(torch.float32)
    samples = restore(
        GaussianDenoiser(mean, covariance, SDES["karras"]),
        y,
        Linear(a),
        partial(TwistedSMC, particles=16, steps=60),
        num=1500,
        noise_std=NOISE_STD,
        generator=torch.Generator().manual_seed(0),
        batch_size=1500,
    )
    m, v = gaussian_posterior(mean, covariance, a, y[0], NOISE_STD)
    torch.testing.assert_close(samples.mean(0), m, rtol=0, atol=0.06)
    torch.testing.assert_close(samples.T.cov(), v, rtol=0, atol=0.06)


@pytest.mark.parametrize("method", [MMPS, PGDM, DPS, Replacement])
def test_what_it_cost_is_counted(method) -> None:
    mean, covariance, a, y = problem()
    inside = GaussianDenoiser(mean, covariance, SDES["karras"])
    posterior = method(inside, y, Linear(a), NOISE_STD)
    posterior.denoise(torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    # forward, and products: of the two iterations that two measured numbers take, and of the answer
    assert posterior.evaluations == {MMPS: 4, PGDM: 2, DPS: 2, Replacement: 1}[method]
    assert inside.calls == 1
    sampler = DPMSolverPlusPlus(5)
    restore(inside, y, Linear(a), partial(method), num=2, sampler=sampler, noise_std=NOISE_STD)
    assert sampler.nfe == 5 * posterior.evaluations


def test_gradients_reach_through_a_sampler_that_takes_none() -> None:
    mean, covariance, a, y = problem()
    posterior = PGDM(GaussianDenoiser(mean, covariance, SDES["karras"]), y, Linear(a), NOISE_STD)
    x, t = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        quiet = posterior.denoise(x, t)
    torch.testing.assert_close(quiet, posterior.denoise(x, t))
    assert not quiet.requires_grad


@pytest.mark.parametrize("method", [MMPS, PGDM, DPS])
def test_weights_are_as_they_were(method) -> None:
    """A network in training is asked, too: its weights take gradients afterwards, and have got none."""
    network = MLP(dim=3)
    frozen = next(network.parameters()).requires_grad_(False)
    inside = NetworkDenoiser(network, SDES["karras"], KarrasPreconditioning())
    method(inside, torch.zeros(1, 2), Linear(problem(torch.float32)[2]), NOISE_STD).denoise(
        torch.ones(2, 3), torch.ones(2)
    )
    assert all(weight.requires_grad == (weight is not frozen) for weight in network.parameters())
    assert all(weight.grad is None for weight in network.parameters())


def test_dps_steps_down_the_norm() -> None:
    mean, covariance, a, y = problem()
    inside = GaussianDenoiser(mean, covariance, SDES["vp"])
    x = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.4], dtype=torch.float64)
    denoised = inside.denoise(x, t)
    (gradient,) = torch.autograd.grad((y - denoised @ a.T).norm(), x)
    expected = denoised - 0.7 * inside.sde.sigma(t) * 2**0.5 * gradient
    torch.testing.assert_close(DPS(inside, y, Linear(a), zeta=0.7).denoise(x.detach(), t), expected.detach())


def test_replacement_keeps_the_known_part_on_its_way() -> None:
    """The state's known part is the measurement, noised to each level by the start's own noise."""
    sde = KarrasSDE()
    mean, covariance = problem(torch.float32)[:2]
    known = Inpainting(torch.tensor([True, False, True]))
    y = torch.tensor([[0.4, 0.0, -0.2]])
    start = sde.prior((5, 3), generator=torch.Generator().manual_seed(0))
    states = DPMSolverPlusPlus(6)(
        Replacement(GaussianDenoiser(mean, covariance, sde), y, known), (5, 3), x_T=start, trajectory=True
    )
    levels = [80.0, *DPMSolverPlusPlus(6).levels(sde)[1:], 0.0]
    for state, level in zip(states, levels, strict=True):
        torch.testing.assert_close(state[:, 0], 0.4 + (start[:, 0] - 0.4) * level / 80, rtol=1e-4, atol=1e-4)
    assert torch.equal(states[-1][:, ::2], y[:, ::2].expand(5, 2))
