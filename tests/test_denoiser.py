"""The denoiser's derived functions, and the exact denoiser of a Gaussian mixture against quadrature and autograd."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.parameterization import NoisePrediction
from diffusion_lightning.sde import SDE, VESDE, VPSDE, KarrasSDE, PowerVESDE, SubVPSDE

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "karras": KarrasSDE(),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
LEVELS = (0.02, 0.1, 0.5, 2.0, 9.0)  # of noise, which every process above reaches


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mixture(sde: SDE, shape: tuple[int, ...] = (2,)) -> GaussianMixtureDenoiser:
    means = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return GaussianMixtureDenoiser(means, double(0.1, 0.4, 0.2), double(0.5, 0.3, 0.2), sde)


def line(sde: SDE) -> GaussianMixtureDenoiser:
    """A mixture on the line, for quadrature; its weights do not sum to 1 when given."""
    return GaussianMixtureDenoiser(double(-1.0, 0.4, 1.5)[:, None], double(0.1, 0.4, 0.2), double(5, 3, 2), sde)


def noisy_batch(denoiser: GaussianMixtureDenoiser, n: int = 200) -> tuple[Tensor, Tensor]:
    """x ~ p_t at random times of every noise level."""
    draw, sde = torch.Generator().manual_seed(1), denoiser.sde
    ends = sde.noise_level(double(sde.t_min, sde.T)).log()
    u = torch.rand(n, dtype=torch.float64, generator=draw)
    t = sde.time_at(torch.exp(ends[0] + u * (ends[1] - ends[0]))).clamp(sde.t_min, sde.T)
    x0 = denoiser.sample_data(n, draw)
    return sde.perturb(x0, t, torch.randn(x0.shape, dtype=torch.float64, generator=draw)), t


class Recorder(nn.Module):
    """Returns half of its input and remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.cond: dict[str, Any] = {}

    def forward(self, x: Tensor, time_signal: Tensor, **cond: Any) -> Tensor:
        self.cond = cond
        return self.weight * x


# ---- the mixture


@every_sde
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2, 2)])
def test_score_is_the_gradient_of_the_log_density(sde: SDE, shape: tuple[int, ...]) -> None:
    denoiser = mixture(sde, shape)
    x, t = noisy_batch(denoiser)
    x.requires_grad_()
    gradient = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)[0]
    scale = sde.sigma(t).reshape(-1, *[1] * len(shape))
    torch.testing.assert_close(scale * denoiser.score(x, t), scale * gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(denoiser.noise(x, t), -scale * gradient, rtol=1e-8, atol=1e-8)


@every_sde
def test_log_density_is_that_of_torch_distributions(sde: SDE) -> None:
    denoiser = mixture(sde)
    x, t = noisy_batch(denoiser)
    for i in range(0, 200, 20):
        alpha, sigma = sde.alpha(t)[i], sde.sigma(t)[i]
        std = torch.sqrt(alpha**2 * double(0.1, 0.4, 0.2) ** 2 + sigma**2)[:, None].expand(3, 2)
        normal = torch.distributions.Independent(torch.distributions.Normal(alpha * denoiser.means, std), 1)
        by_torch = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(denoiser.weights), normal)
        torch.testing.assert_close(denoiser.log_prob(x[i : i + 1], t[i : i + 1])[0], by_torch.log_prob(x[i]))


@every_sde
@pytest.mark.parametrize("level", LEVELS)
def test_density_integrates_to_one(sde: SDE, level: float) -> None:
    denoiser = line(sde)
    t = sde.time_at(double(level))
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    edge = alpha * 4 + 10 * sigma
    x = torch.linspace(-edge, edge, 20_001, dtype=torch.float64)
    total = torch.trapezoid(denoiser.log_prob(x[:, None], t.expand(len(x))).exp(), x)
    assert total.item() == pytest.approx(1, abs=1e-9)


@every_sde
@pytest.mark.parametrize("level", LEVELS)
def test_denoised_is_the_posterior_mean_by_quadrature(sde: SDE, level: float) -> None:
    """∫ x0 p(x0) N(x; αx0, σ²) dx0 / ∫ p(x0) N(x; αx0, σ²) dx0 on a fine grid, nothing of the closed form in it."""
    denoiser = line(sde)
    t = sde.time_at(double(level))
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x0 = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    data = sum(
        w * torch.exp(-(((x0 - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
        for w, m, s in ((0.5, -1.0, 0.1), (0.3, 0.4, 0.4), (0.2, 1.5, 0.2))
    )
    x = alpha * torch.linspace(-2, 2.5, 19, dtype=torch.float64) + 0.7 * sigma
    joint = data * torch.exp(-(((x[:, None] - alpha * x0) / sigma) ** 2) / 2)
    posterior_mean = (joint * x0).sum(1) / joint.sum(1)
    denoised = denoiser.denoise(x[:, None], t.expand(len(x)))
    torch.testing.assert_close(denoised[:, 0], posterior_mean, rtol=1e-8, atol=1e-8)


@every_sde
def test_a_single_point_is_always_recovered(sde: SDE) -> None:
    point = double(0.3, -0.7)[None]
    denoiser = GaussianMixtureDenoiser(point, double(0.0), double(2.0), sde)
    x, t = noisy_batch(denoiser)
    torch.testing.assert_close(denoiser.denoise(x, t), point.expand(200, 2), rtol=0, atol=1e-12)


def test_two_points_weighted_by_distance() -> None:
    """In the middle between two points their prior weights decide: D = 0.75·1 + 0.25·(−1)."""
    denoiser = GaussianMixtureDenoiser(double(1.0, -1.0)[:, None], double(0.0, 0.0), double(3.0, 1.0), KarrasSDE())
    torch.testing.assert_close(denoiser.denoise(double(0.0)[:, None], double(0.7)), double(0.5)[:, None])
    # elsewhere, the posterior odds are 3·exp(2x/σ²)
    odds = 3 * math.exp(2 * -0.2 / 0.49)
    expected = double((odds - 1) / (odds + 1))[:, None]
    torch.testing.assert_close(denoiser.denoise(double(-0.2)[:, None], double(0.7)), expected)


def test_draws_of_the_data_follow_the_mixture() -> None:
    denoiser = line(VPSDE())
    before = torch.get_rng_state()
    x = denoiser.sample_data(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, denoiser.sample_data(20_000, torch.Generator().manual_seed(0)))
    assert x.shape == (20_000, 1)
    torch.testing.assert_close(denoiser.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    mean = 0.5 * -1 + 0.3 * 0.4 + 0.2 * 1.5
    second = 0.5 * (1 + 0.01) + 0.3 * (0.16 + 0.16) + 0.2 * (2.25 + 0.04)
    std = math.sqrt(second - mean**2)
    assert abs(x.mean().item() - mean) < 5 * std / 20_000**0.5
    assert abs((x**2).mean().item() - second) < 5 * (x**2).std().item() / 20_000**0.5
    # the narrow component, alone on its side
    narrow = x[x < -0.75]
    assert abs(narrow.mean().item() + 1) < 0.02
    assert narrow.std().item() == pytest.approx(0.1, abs=0.01)


def test_components_must_match() -> None:
    with pytest.raises(ValueError, match="3, 2 and 3 components"):
        GaussianMixtureDenoiser(torch.zeros(3, 2), torch.ones(2), torch.ones(3), VPSDE())


# ---- what every denoiser derives


@every_sde
def test_score_noise_and_flow_follow_from_denoise_alone(sde: SDE) -> None:
    class Halves(Denoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x / 2 + cond["shift"]

    denoiser = Halves(sde)
    x, t = noisy_batch(mixture(sde, (1, 2, 2)), 7)
    for i in range(7):
        alpha, sigma, f, g = (value(t)[i] for value in (sde.alpha, sde.sigma, sde.drift_rate, sde.diffusion))
        denoised = x[i] / 2 + 0.25
        score = (alpha * denoised - x[i]) / sigma**2
        torch.testing.assert_close(denoiser.score(x, t, shift=0.25)[i], score)
        torch.testing.assert_close(denoiser.noise(x, t, shift=0.25)[i], (x[i] - alpha * denoised) / sigma)
        torch.testing.assert_close(denoiser.probability_flow(x, t, shift=0.25)[i], f * x[i] - g**2 * score / 2)


@every_sde
@pytest.mark.parametrize("level", LEVELS)
def test_probability_flow_carries_the_density(sde: SDE, level: float) -> None:
    """The continuity equation ∂ₜ ln p = −(∂ₓv + v·∂ₓ ln p), everything by autograd: f, g², and the ½ must be right."""
    denoiser = line(sde)
    alpha = sde.alpha(sde.time_at(double(level)))
    x = (alpha * torch.linspace(-2, 2.5, 37, dtype=torch.float64)[:, None]).requires_grad_()
    t = sde.time_at(double(level)).repeat(37).requires_grad_()
    by_x, by_t = torch.autograd.grad(denoiser.log_prob(x, t).sum(), (x, t))
    velocity = denoiser.probability_flow(x, t)
    divergence = torch.autograd.grad(velocity.sum(), x)[0]
    torch.testing.assert_close(by_t, -(divergence + velocity * by_x)[:, 0].detach(), rtol=1e-8, atol=1e-8)


def test_conditions_reach_the_network_through_every_function() -> None:
    network = Recorder()
    denoiser = NetworkDenoiser(network, VPSDE(), NoisePrediction())
    x, t, labels = torch.ones(3, 2, dtype=torch.float64), double(0.2, 0.5, 0.9), torch.tensor([4, 5, 6])
    for function in (denoiser.denoise, denoiser.noise, denoiser.score, denoiser.probability_flow):
        network.cond = {}
        function(x, t, labels=labels)
        assert torch.equal(network.cond["labels"], labels)
        function(x, t)
        assert network.cond == {}


def test_gradients_flow_to_the_network() -> None:
    network = Recorder()
    NetworkDenoiser(network, VPSDE(), NoisePrediction()).denoise(
        torch.ones(2, 2, dtype=torch.float64), double(0.3, 0.6)
    ).sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs() > 0


def test_device_is_where_the_weights_are() -> None:
    denoiser = NetworkDenoiser(Recorder(), VPSDE(), NoisePrediction())
    assert denoiser.device == torch.device("cpu")
    assert denoiser.to("meta").device == torch.device("meta")
    assert mixture(VPSDE()).to("meta").device == torch.device("meta")  # buffers only
    assert NetworkDenoiser(nn.Identity(), VPSDE(), NoisePrediction()).device == torch.device("cpu")


def test_an_heir_has_the_arguments_that_it_is_made_by() -> None:
    """Some versions of Python, 3.11.2 for one, say (*args, **kwargs) of it, and guidance had no weight there."""

    class Steered(Denoiser):
        def __init__(self, sde: SDE, weight: float = 2.0) -> None:
            super().__init__(sde)
            self.weight = weight

        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x

    class Heir(Steered):
        pass

    assert str(Heir.__signature__) == str(inspect.signature(Steered.__init__)).replace("self, ", "")  # type: ignore[attr-defined]
    assert inspect.signature(Heir).parameters["weight"].default == 2.0
    assert Heir(VPSDE(), weight=3.0).weight == 3.0


def test_the_abstract_one_says_what_to_make_instead() -> None:
    """Up to 0.2.0 it was itself the denoiser of a network."""
    with pytest.raises(TypeError, match=r"abstract: a network's is NetworkDenoiser\(network, sde, parameterization\)"):
        Denoiser(nn.Identity(), VPSDE(), NoisePrediction())  # type: ignore[abstract, call-arg]


def test_classes_are_those_of_the_network() -> None:
    network = nn.Identity()
    assert NetworkDenoiser(network, VPSDE(), NoisePrediction()).num_classes is None
    network.num_classes = 3  # type: ignore[assignment]
    assert NetworkDenoiser(network, VPSDE(), NoisePrediction()).num_classes == 3
    assert mixture(VPSDE(), (2,)).num_classes is None
