"""What a network's output means, against the exact posterior mean of a mixture and the table of Karras et al. 2022."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoiser import GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.parameterization import (
    KarrasPreconditioning,
    NoisePrediction,
    Parameterization,
    ScorePrediction,
)
from diffusion_lightning.sde import SDE, VESDE, VPSDE, KarrasSDE, PowerVESDE, SubVPSDE, expand

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "karras": KarrasSDE(),
}
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "score": ScorePrediction(),
    "noise": NoisePrediction(),
    "karras": KarrasPreconditioning(),
    "karras 1.7": KarrasPreconditioning(1.7),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_parameterization = pytest.mark.parametrize(
    "parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS.keys()
)


class Says(nn.Module):
    """A network that gives a prepared answer and remembers the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def forward(self, x: Tensor, time_signal: Tensor, **cond: Any) -> Tensor:
        self.asked = (x, time_signal, cond)
        return self.answer


def noisy_batch(sde: SDE, shape: tuple[int, ...] = (64, 2)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, z, t over the whole range of noise levels, and x_t, in double precision."""
    draw = torch.Generator().manual_seed(0)
    x0 = torch.randn(shape, dtype=torch.float64, generator=draw)
    z = torch.randn(shape, dtype=torch.float64, generator=draw)
    ends = sde.noise_level(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).log()
    levels = torch.linspace(ends[0].item(), ends[1].item(), shape[0], dtype=torch.float64).exp()
    t = sde.time_at(levels).clamp(sde.t_min, sde.T)
    return x0, z, t, sde.perturb(x0, t, z)


@every_sde
@every_parameterization
@pytest.mark.parametrize("shape", [(64, 2), (64, 3, 2, 2)])
def test_a_network_that_hits_its_target_denoises(
    sde: SDE, parameterization: Parameterization, shape: tuple[int, ...]
) -> None:
    x0, z, t, x = noisy_batch(sde, shape)
    network = Says(parameterization.target(sde, x0, x, t))
    denoiser = NetworkDenoiser(network, sde, parameterization)
    torch.testing.assert_close(denoiser.denoise(x, t), x0, rtol=0, atol=1e-5)
    std = expand(sde.sigma(t), x)
    torch.testing.assert_close(denoiser.noise(x, t), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser.score(x, t) * std, -z, rtol=0, atol=1e-5)


@every_sde
@every_parameterization
def test_the_network_sees_the_scaled_input_and_the_documented_time_signal(
    sde: SDE, parameterization: Parameterization
) -> None:
    _, z, t, x = noisy_batch(sde)
    network = Says(z)
    labels = torch.arange(64)
    NetworkDenoiser(network, sde, parameterization).denoise(x, t, labels=labels)
    assert network.asked is not None
    seen, signal, cond = network.asked
    if isinstance(parameterization, KarrasPreconditioning):
        level = sde.sigma(t) / sde.alpha(t)
        torch.testing.assert_close(signal, torch.log(level) / 4)
        scale = 1 / torch.sqrt(level**2 + parameterization.sigma_data**2)
        torch.testing.assert_close(seen, scale[:, None] * x / sde.alpha(t)[:, None])
    else:
        assert torch.equal(signal, t)
        assert torch.equal(seen, x)
    assert signal.shape == (64,)
    assert list(cond) == ["labels"]
    assert torch.equal(cond["labels"], labels)


@every_sde
@every_parameterization
def test_an_exact_network_has_the_exact_score(sde: SDE, parameterization: Parameterization) -> None:
    """The target of the posterior mean, put through the parameterization, gives the mixture's score, by autograd."""
    exact = GaussianMixtureDenoiser(
        torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]], dtype=torch.float64),
        torch.tensor([0.2, 0.4, 0.3], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        sde,
    )
    _, z, t, _ = noisy_batch(sde)
    x = sde.perturb(exact.sample_data(64, torch.Generator().manual_seed(1)), t, z)
    network = Says(parameterization.target(sde, exact.denoise(x, t), x, t))
    denoiser = NetworkDenoiser(network, sde, parameterization)
    x.requires_grad_()
    score = torch.autograd.grad(exact.log_prob(x, t).sum(), x)[0]
    std = expand(sde.sigma(t), x)
    torch.testing.assert_close(std * denoiser.score(x, t), std * score, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(denoiser.noise(x, t), -std * score, rtol=1e-6, atol=1e-8)
    # Tweedie's formula
    torch.testing.assert_close(
        expand(sde.alpha(t), x) * denoiser.denoise(x, t), x + std**2 * score, rtol=1e-6, atol=1e-6
    )


@every_sde
def test_score_prediction_divides_the_output_by_sigma(sde: SDE) -> None:
    x0, z, t, x = noisy_batch(sde)
    raw = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    denoiser = NetworkDenoiser(Says(raw), sde, ScorePrediction())
    torch.testing.assert_close(denoiser.score(x, t), raw / sde.sigma(t)[:, None], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ScorePrediction().target(sde, x0, x, t), -z, rtol=0, atol=1e-7)


@every_sde
def test_noise_prediction_is_the_noise(sde: SDE) -> None:
    x0, z, t, x = noisy_batch(sde)
    raw = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    denoiser = NetworkDenoiser(Says(raw), sde, NoisePrediction())
    torch.testing.assert_close(denoiser.noise(x, t), raw, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(NoisePrediction().target(sde, x0, x, t), z, rtol=0, atol=1e-7)


@every_sde
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_karras_input_and_target_have_unit_variance(sde: SDE, sigma_data: float) -> None:
    """For data of variance σ_d²: x = αx0 + σz and the target (x0 − c_skip x)/c_out, both in closed form."""
    _, _, t, _ = noisy_batch(sde)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    c = KarrasPreconditioning(sigma_data).coefficients(sde, t)
    one = torch.ones_like(t)
    torch.testing.assert_close(c.input**2 * (alpha**2 * sigma_data**2 + sigma**2), one)
    of_data, of_noise = (1 - c.skip * alpha) / c.out, c.skip * sigma / c.out
    torch.testing.assert_close(of_data**2 * sigma_data**2 + of_noise**2, one)
    assert (c.out > 0).all()
    # the skip is the linear regression of x0 on x, which makes the variance of the error c_out² the least possible
    torch.testing.assert_close(c.skip, alpha * sigma_data**2 / (alpha**2 * sigma_data**2 + sigma**2))


def test_karras_table_1() -> None:
    """σ_d = 0.5 as in the paper, at σ = 0.5 and σ = 2, with α = 1."""
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    c = KarrasPreconditioning().coefficients(KarrasSDE(), t)
    by_hand = {
        "skip": [0.25 / 0.5, 0.25 / 4.25],
        "out": [0.5 * 0.5 / math.sqrt(0.5), 2 * 0.5 / math.sqrt(4.25)],
        "input": [1 / math.sqrt(0.5), 1 / math.sqrt(4.25)],
        "noise": [math.log(0.5) / 4, math.log(2) / 4],
    }
    for name, values in by_hand.items():
        assert getattr(c, name).tolist() == pytest.approx(values, rel=1e-12), name


def test_karras_coefficients_depend_on_the_noise_level_alone() -> None:
    """A VP network input x/α at the noise level of an EDM input is the same input: x̃ = x/α."""
    vp, karras = VPSDE(), KarrasSDE()
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    parameterization = KarrasPreconditioning(0.7)
    of_vp, of_karras = parameterization.coefficients(vp, t), parameterization.coefficients(karras, vp.noise_level(t))
    torch.testing.assert_close(of_vp.skip * vp.alpha(t), of_karras.skip)
    torch.testing.assert_close(of_vp.input * vp.alpha(t), of_karras.input)
    torch.testing.assert_close(of_vp.out, of_karras.out)
    torch.testing.assert_close(of_vp.noise, of_karras.noise)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_sigma_data_must_be_positive(sigma_data: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data={sigma_data}"):
        KarrasPreconditioning(sigma_data)
