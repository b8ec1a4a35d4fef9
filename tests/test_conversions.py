"""Score, noise, velocity, denoised image and network output are one thing in five units: every pair, on every process.

The standard is the exact posterior mean of a mixture. Each quantity is compared in its natural unit: the noise and
σ·score have size 1, the denoised image the size of the data, a flow the size of α' and σ'. What is lost in single
precision is bounded by the formulas themselves: D = (x − σ·ẑ)/α subtracts two numbers of size σ and divides by α, so
it keeps an error of about σ/α units in the last place; ẑ = (x − α·D)/σ one of α/σ.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    GaussianMixtureDenoiser,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    Parameterization,
    PowerVESDE,
    RectifiedFlow,
    ScorePrediction,
    SubVPSDE,
    VelocityPrediction,
)
from diffusion_lightning.sde import expand

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "flow": RectifiedFlow(),
    "karras": KarrasSDE(),
    "discrete vp": DiscreteVPSDE(),
    "discrete vp, cosine": DiscreteVPSDE(40, schedule="cosine"),
    "discrete ve": DiscreteVESDE(),
}
VARIANCE_PRESERVING = ["vp", "cosine", "discrete vp", "discrete vp, cosine"]
VARIANCE_EXPLODING = ["power", "ve", "karras", "discrete ve"]
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "score": ScorePrediction(),
    "score, told the noise": ScorePrediction(condition="noise"),
    "noise": NoisePrediction(),
    "velocity": VelocityPrediction(),
    "karras": KarrasPreconditioning(),
    "karras 1.7": KarrasPreconditioning(1.7),
}
every_sde = pytest.mark.parametrize("name", SDES)
every_parameterization = pytest.mark.parametrize("kind", PARAMETERIZATIONS)
N = 96


class Says(nn.Module):
    """A network that gives a prepared answer and remembers the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, time_signal: Tensor, **cond: Any) -> Tensor:
        self.asked = (x, time_signal)
        return self.answer


def exact_batch(
    sde: SDE, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> tuple[GaussianMixtureDenoiser, Tensor, Tensor, Tensor, Tensor]:
    """The exact denoiser of a mixture, and x0, z, t (all noise levels, the ends included) and x_t."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(3, *shape, dtype=torch.float64, generator=draw)
    stds, weights = torch.tensor([0.1, 0.4, 0.2]), torch.tensor([0.5, 0.3, 0.2])
    exact = GaussianMixtureDenoiser(means.to(dtype), stds.to(dtype), weights.to(dtype), sde)
    x0 = exact.sample_data(N, draw)
    z = torch.randn(N, *shape, dtype=torch.float64, generator=draw).to(dtype)
    ends = sde.noise_level(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).log()
    t = sde.time_at(torch.linspace(*ends.tolist(), N, dtype=torch.float64).exp()).clamp(sde.t_min, sde.T).to(dtype)
    return exact, x0, z, t, sde.perturb(x0, t, z)


@every_sde
@every_parameterization
@pytest.mark.parametrize("shape", [(2,), (1, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_a_network_that_outputs_the_target_of_the_posterior_mean_is_exact(
    name: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """In all that a denoiser gives; and its image converts into every other network's output."""
    sde, parameterization = SDES[name], PARAMETERIZATIONS[kind]
    exact, _, _, t, x = exact_batch(sde, shape, dtype)
    mean = exact.denoise(x, t)
    network = Says(parameterization.target(sde, mean, x, t))
    denoiser = NetworkDenoiser(network, sde, parameterization)
    denoised = denoiser.denoise(x, t)

    alpha, sigma = (expand(value, x) for value in (sde.alpha(t), sde.sigma(t)))
    alpha_rate, sigma_rate = (expand(rate.abs(), x) for rate in sde.rates(t))
    # some ten operations, each of half a unit in the last place of x or αD
    rounding = 16 * torch.finfo(dtype).eps * (x.abs() + alpha * mean.abs())
    compared = [
        (denoised, mean, rounding / alpha),
        (denoiser.noise(x, t), exact.noise(x, t), rounding / sigma),
        (sigma * denoiser.score(x, t), sigma * exact.score(x, t), rounding / sigma),
        (
            denoiser.probability_flow(x, t),
            exact.probability_flow(x, t),
            rounding * (alpha_rate / alpha + sigma_rate / sigma),
        ),
    ]
    for other in PARAMETERIZATIONS.values():
        out = expand(other.coefficients(sde, t).out.abs(), x)
        compared.append((other.target(sde, denoised, x, t), other.target(sde, mean, x, t), rounding / alpha / out))
    for value, expected, bound in compared:
        assert value.dtype == dtype
        assert value.shape == x.shape
        assert ((value - expected).abs() <= bound).all()
        if dtype == torch.float64:  # where rounding is no excuse: to 1e-5 of the size of the quantity
            assert (value - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()


@every_sde
def test_the_exact_score_is_the_gradient_and_all_else_follows_from_it(name: str) -> None:
    """Of ln p_t by autograd: noise −σs, denoised image (x + σ²s)/α (Tweedie), flow f·x − ½g²·s."""
    sde = SDES[name]
    exact, _, _, t, x = exact_batch(sde)
    x.requires_grad_()
    score = torch.autograd.grad(exact.log_prob(x, t).sum(), x)[0]
    x = x.detach()
    alpha, sigma, f, g = (expand(value(t), x) for value in (sde.alpha, sde.sigma, sde.drift_rate, sde.diffusion))
    torch.testing.assert_close(sigma * exact.score(x, t), sigma * score, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(exact.noise(x, t), -sigma * score, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(alpha * exact.denoise(x, t), x + sigma**2 * score, rtol=1e-7, atol=1e-8)
    # f·x and ½g²·s are large and cancel where α is small: double precision leaves 1e-12 of them
    flow, drift = exact.probability_flow(x, t), f * x
    spread = (0.5 * g**2 * score).abs() + drift.abs()
    difference = (flow - (drift - 0.5 * g**2 * score)).abs()
    assert (difference <= 1e-8 * flow.abs() + 1e-8 * (g**2 / sigma) + 1e-12 * spread).all()


# ---- the targets as the literature has them


def target(name: str, kind: str, shape: tuple[int, ...] = (2,)) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The target for a batch, and x0, z, α and σ."""
    sde = SDES[name]
    _, x0, z, t, x = exact_batch(sde, shape)
    alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
    return PARAMETERIZATIONS[kind].target(sde, x0, x, t), x0, z, alpha, sigma


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_velocity_on_variance_preserving_processes_is_that_of_salimans_and_ho(name: str) -> None:
    """v = αz − σx0 (2022, section 4), and x0 = αx − σv."""
    v, x0, z, alpha, sigma = target(name, "velocity")
    torch.testing.assert_close(v, alpha * z - sigma * x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(alpha * (alpha * x0 + sigma * z) - sigma * v, x0, rtol=0, atol=1e-9)


def test_velocity_on_the_rectified_flow_is_noise_minus_data() -> None:
    v, x0, z, *_ = target("flow", "velocity")
    torch.testing.assert_close(v, z - x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", VARIANCE_EXPLODING)
def test_velocity_on_variance_exploding_processes_is_the_noise(name: str) -> None:
    v, _, z, *_ = target(name, "velocity")
    torch.testing.assert_close(v, z, rtol=0, atol=1e-9)


@every_sde
def test_velocity_is_the_time_derivative_of_the_path_in_its_own_clock(name: str) -> None:
    """d(αx0 + σz)/dt by autograd, over ασ' − α'σ; and a network's velocity in that clock is the probability flow."""
    sde = SDES[name]
    exact, x0, z, t, x = exact_batch(sde)
    t.requires_grad_()
    constant = name in VARIANCE_EXPLODING  # α = 1
    alpha_rate = torch.zeros_like(t) if constant else torch.autograd.grad(sde.alpha(t).sum(), t)[0]
    sigma_rate = torch.autograd.grad(sde.sigma(t).sum(), t)[0]
    t = t.detach()
    clock = expand(sde.alpha(t) * sigma_rate - alpha_rate * sde.sigma(t), x)
    path = expand(alpha_rate, x) * x0 + expand(sigma_rate, x) * z
    velocity = PARAMETERIZATIONS["velocity"]
    torch.testing.assert_close(velocity.target(sde, x0, x, t), path / clock, rtol=1e-7, atol=1e-7)
    flow = exact.probability_flow(x, t) / clock
    torch.testing.assert_close(velocity.target(sde, exact.denoise(x, t), x, t), flow, rtol=1e-7, atol=1e-7)


@every_sde
def test_noise_and_score_targets_are_the_noise_and_its_negative(name: str) -> None:
    assert_close = torch.testing.assert_close
    noise, _, z, *_ = target(name, "noise")
    assert_close(noise, z, rtol=0, atol=1e-7)
    for kind in ("score", "score, told the noise"):
        assert_close(target(name, kind)[0], -z, rtol=0, atol=1e-7)


# ---- what the network is told


@every_sde
@every_parameterization
def test_the_network_is_told_what_its_parameterization_says(name: str, kind: str) -> None:
    sde = SDES[name]
    _, _, z, t, x = exact_batch(sde)
    network = Says(z)
    NetworkDenoiser(network, sde, PARAMETERIZATIONS[kind]).denoise(x, t)
    assert network.asked is not None
    seen, signal = network.asked
    level = sde.sigma(t) / sde.alpha(t)
    told = {"score, told the noise": sde.sigma(t)} | dict.fromkeys(("karras", "karras 1.7"), torch.log(level) / 4)
    assert torch.equal(signal, told.get(kind, t))
    if "karras" not in kind:
        assert torch.equal(seen, x)


def test_what_the_score_is_conditioned_on_changes_nothing_else() -> None:
    for name, sde in SDES.items():
        t = exact_batch(sde)[3]
        time, noise = (PARAMETERIZATIONS[kind].coefficients(sde, t) for kind in ("score", "score, told the noise"))
        assert torch.equal(noise.noise, sde.sigma(t)), name
        assert all(torch.equal(a, b) for a, b in zip(time[:3], noise[:3], strict=True)), name


@pytest.mark.parametrize("condition", ["sigma", "", None, True])
def test_another_condition_is_named(condition: Any) -> None:
    with pytest.raises(ValueError, match=f"condition={condition!r}: must be 'time' or 'noise'"):
        ScorePrediction(condition)
