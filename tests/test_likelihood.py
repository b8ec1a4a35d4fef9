"""Log-likelihoods against closed forms, change of variables and erf; Hutchinson's mean and variance; bits per dim."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.likelihood import bits_per_dim, log_likelihood
from diffusion_lightning.networks import ScoreNet, UNet
from diffusion_lightning.parameterization import KarrasPreconditioning, NoisePrediction
from diffusion_lightning.samplers import ProbabilityFlowODE
from diffusion_lightning.sde import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    KarrasSDE,
    PowerVESDE,
    RectifiedFlow,
    SubVPSDE,
    expand,
)

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "flow": RectifiedFlow(),
    "karras": KarrasSDE(),
    "ddpm": DiscreteVPSDE(),
    "ncsn": DiscreteVESDE(200, 0.01, 50.0),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
CELL = 1 / 128
"""Width of an 8-bit level in [-1, 1]."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moment(sde: SDE, t: float, n: int) -> Tensor:
    """The time t, ``(n,)``."""
    return torch.full((n,), t, dtype=torch.float64)


def gaussian(sde: SDE, shape: tuple[int, ...], std: float, dtype: torch.dtype = torch.float64) -> Denoiser:
    """The exact denoiser of N(0, std²·I)."""
    return GaussianMixtureDenoiser(torch.zeros(1, *shape, dtype=dtype), double(std).to(dtype), double(1).to(dtype), sde)


def mixture(sde: SDE, scale: float) -> GaussianMixtureDenoiser:
    """Three components of different sizes on a plane in three dimensions, far apart for their sizes."""
    means = scale * torch.tensor([[-1.0, 0.5, 0.2], [1.0, 0.4, -0.3], [0.2, -1.0, 0.1]], dtype=torch.float64)
    weights = double(0.3, 0.3, 0.4)
    means = means - (weights[:, None] * means).sum(0)
    return GaussianMixtureDenoiser(means, scale * double(0.2, 0.4, 0.3), weights, sde)


class Correlated(Denoiser):
    """The exact denoiser of N(0, Σ) with a full Σ: D = αΣ(α²Σ + σ²)⁻¹x, so the Jacobian of the flow is not diagonal.

    The flow is linear and all its matrices commute: x_T = (C_T C⁻¹)^½ x with C(t) = α²Σ + σ²I, so the integral of the
    Jacobian along any path is M = ½ ln(C_T C⁻¹), and the estimate by a probe ε is exactly εᵀMε.
    """

    def __init__(self, sde: SDE, scale: float = 0.5) -> None:
        super().__init__(sde)
        root = scale * torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.7, 0.4, 0.2]], dtype=torch.float64)
        self.values, self.vectors = torch.linalg.eigh(root @ root.T)

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        return (x @ self.vectors * gain) @ self.vectors.T

    def variances(self, t: float) -> Tensor:
        """Eigenvalues of C(t)."""
        time = double(t)
        return self.sde.alpha(time) ** 2 * self.values + self.sde.sigma(time) ** 2

    def integral(self) -> Tensor:
        """M, ``(3, 3)``."""
        log = 0.5 * torch.log(self.variances(self.sde.T) / self.variances(self.sde.t_min))
        return self.vectors @ torch.diag(log) @ self.vectors.T

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """``n`` draws of p at t_min."""
        z = torch.randn(n, 3, dtype=torch.float64, generator=generator(seed))
        return z * self.variances(self.sde.t_min).sqrt() @ self.vectors.T


def draws(denoiser: GaussianMixtureDenoiser, n: int, seed: int = 0) -> Tensor:
    """``n`` draws of p at t_min."""
    sde, draw = denoiser.sde, generator(seed)
    x0 = denoiser.sample_data(n, draw)
    noise = torch.randn(x0.shape, dtype=x0.dtype, generator=draw)
    return sde.perturb(x0, moment(sde, sde.t_min, n).to(x0), noise)


def attentive(dtype: torch.dtype = torch.float32, num_classes: int | None = None, seed: int = 0) -> Denoiser:
    """A tiny UNet with attention, none of whose weights is zero and smooth in time as a trained one, on KarrasSDE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(
            channels=(8,),
            num_res_blocks=1,
            attention_levels=(0,),
            num_heads=2,
            embed_dim=8,
            num_classes=num_classes,
            time_scale=4.0,
        )
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.4 / parameter[0].numel() ** 0.5)
    return NetworkDenoiser(network.to(dtype).eval(), KarrasSDE(0.02, 20.0), KarrasPreconditioning())


# ---- closed forms


@every_sde
@pytest.mark.parametrize("build", [lambda sde: gaussian(sde, (1, 2, 2), 0.02), lambda sde: mixture(sde, 0.03)])
def test_the_exact_log_likelihood_of_centred_data_is_that_of_the_closed_form(
    sde: SDE, build: Callable[[SDE], GaussianMixtureDenoiser]
) -> None:
    """N(0, σ(T)²) stands for p_T, which is wrong by about ½(α²v/σ²)(z²/σ² − 1) per dimension, v the data's variance.

    Of data this small (v < 2e-3; the smallest σ(T)/α(T) is PowerVESDE's 9.85) and centred, that is below 1e-4 nats for
    |z| < 3σ; the rest of the 1e-3 nats are the solver's, whose tolerance is 1e-5 at each of some 50 steps.
    """
    denoiser = build(sde)
    x = draws(denoiser, 24)
    nats, z = log_likelihood(denoiser, x, divergence="exact")
    dimension = x[0].numel()
    assert nats.shape == (24,)
    assert z.shape == x.shape
    by_prior = sde.prior_log_prob(z) - denoiser.log_prob(z, moment(sde, sde.T, 24))
    assert by_prior.abs().max() / dimension < 1e-4
    error = nats - denoiser.log_prob(x, moment(sde, sde.t_min, 24))
    assert error.abs().max() / dimension < 1e-3


@every_sde
def test_of_any_data_the_change_of_log_density_along_the_flow_is_exact(sde: SDE) -> None:
    """Far from centred and as large as images: with ln p_T(z) in place of the prior's nothing but the solver errs.

    Its error is about the tolerance, 1e-6, at each of some 100 steps, in nats per dimension and in x; the latter moves
    ln p_T(z) by |score| times as much, which at T is below 4/σ(T) of an error relative to σ(T).
    """
    denoiser = mixture(sde, 1.0)
    denoiser.means += 0.3
    x = draws(denoiser, 24)
    nats, z = log_likelihood(denoiser, x, divergence="exact", rtol=1e-6, atol=1e-6)
    change = nats - sde.prior_log_prob(z)
    expected = denoiser.log_prob(x, moment(sde, sde.t_min, 24)) - denoiser.log_prob(z, moment(sde, sde.T, 24))
    assert (change - expected).abs().max() / 3 < 2e-4


@pytest.mark.parametrize("name", ["karras", "ddpm"])
def test_t_min_places_x_in_time(name: str) -> None:
    sde = SDES[name]
    denoiser = mixture(sde, 0.03)
    x = 0.05 * torch.randn(6, 3, dtype=torch.float64, generator=generator())
    t = sde.time_at(double(0.05)).item()
    nats, _ = log_likelihood(denoiser, x, divergence="exact", t_min=t)
    torch.testing.assert_close(nats, denoiser.log_prob(x, moment(sde, t, 6)), rtol=0, atol=3e-3)
    plain, _ = log_likelihood(denoiser, x, divergence="exact")
    assert (plain - nats).abs().min() > 1e-2


def jacobian_by_differences(encode: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    """∂encode/∂x at one example ``(…)``, by central differences, ``(d, d)``."""
    d = x.numel()
    offsets = step * torch.eye(d, dtype=x.dtype).reshape(d, *x.shape)
    z = encode(torch.cat([x + offsets, x - offsets])).flatten(1)
    return (z[:d] - z[d:]).T / (2 * step)


def test_through_fused_attention_the_density_changes_by_the_determinant_of_the_encoder() -> None:
    """ln p(x) = ln p_T(z) + ln|det ∂z/∂x|, the right side by finite differences: no divergence and no autograd in it.

    At a tolerance of 1e-7 the solver's error of z, at most 1e-5·σ(T) over 100 steps, and mostly the same for both
    sides of a difference, over a step of 1e-2 gives 1e-3 of a column of the Jacobian; central differences err by about
    step² = 1e-4.
    """
    denoiser = attentive(torch.float64)
    x = 0.5 * torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=generator())
    settings: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7}
    nats, z = log_likelihood(denoiser, x, divergence="exact", **settings)

    def encode(x: Tensor) -> Tensor:
        return log_likelihood(denoiser, x, generator=generator(), **settings)[1]

    for i in range(2):
        log_det = torch.linalg.slogdet(jacobian_by_differences(encode, x[i], 1e-2)).logabsdet
        expected = denoiser.sde.prior_log_prob(z[i : i + 1])[0] + log_det
        assert abs(nats[i] - expected) / 4 < 1e-3
    # and attention is felt: without it the values are others
    before = nats
    for module in denoiser.modules():
        if type(module).__name__ == "SelfAttention":
            module.forward = lambda h: h  # type: ignore[method-assign]
    assert (log_likelihood(denoiser, x, divergence="exact")[0] - before).abs().min() / 4 > 1e-2


# ---- Hutchinson


@every_sde
def test_hutchinson_has_the_mean_and_variance_of_its_quadratic_form(sde: SDE) -> None:
    """The estimate is εᵀMε with M = ½ ln(C_T C⁻¹) of :class:`Correlated`.

    Its mean is tr M, its variance 2‖M‖² for Gaussian probes and 2(‖M‖² − Σ M_ii²) for Rademacher's.
    """
    n = 1500
    denoiser = Correlated(sde)
    x = denoiser.draw(1).expand(n, 3)
    settings: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    exact, z = log_likelihood(denoiser, x[:1], divergence="exact", rtol=1e-6, atol=1e-6)
    integral = denoiser.integral()
    torch.testing.assert_close(exact - sde.prior_log_prob(z), integral.trace()[None], rtol=0, atol=1e-3)

    square, diagonal = (integral**2).sum().item(), (integral.diagonal() ** 2).sum().item()
    assert square - diagonal > 0.05  # not diagonal
    variances = {}
    for noise, variance in (("gaussian", 2 * square), ("rademacher", 2 * (square - diagonal))):
        nats, _ = log_likelihood(denoiser, x, noise=noise, generator=generator(1), **settings)
        variances[noise] = nats.var().item()
        # 3 standard errors, and the solver's own 1e-4 for each of some 30 steps in 3 dimensions
        assert abs(nats.mean() - exact) < 3 * math.sqrt(variance / n) + 1e-2
        fourth = ((nats - nats.mean()) ** 4).mean().item()
        assert abs(variances[noise] - variance) < 4 * math.sqrt(max(fourth - variance**2, 0) / n) + 2e-2 * variance
    assert variances["rademacher"] < variances["gaussian"]


@every_sde
def test_hutchinson_is_unbiased_on_a_mixture(sde: SDE) -> None:
    n = 600
    denoiser = mixture(sde, 0.5)
    x = draws(denoiser, 1, seed=3).expand(n, 3)
    settings: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    exact, _ = log_likelihood(denoiser, x[:1], divergence="exact", **settings)
    for noise in ("rademacher", "gaussian"):
        nats, _ = log_likelihood(denoiser, x, noise=noise, generator=generator(2), **settings)
        assert nats.std() > 1e-2
        assert abs(nats.mean() - exact) < 3 * nats.std() / n**0.5 + 1e-2  # the solver's part as above


@every_sde
def test_rademacher_probes_are_exact_for_an_isotropic_jacobian(sde: SDE) -> None:
    """εᵀ(c·I)ε = c·d for every sign vector: no variance, but for Gaussian probes 2c²·d."""
    denoiser = gaussian(sde, (2, 2, 2), 0.4)
    x = draws(denoiser, 1).expand(40, 2, 2, 2)
    settings: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    exact, _ = log_likelihood(denoiser, x[:1], divergence="exact", **settings)
    rademacher, _ = log_likelihood(denoiser, x, generator=generator(), **settings)
    torch.testing.assert_close(rademacher, exact.expand(40), rtol=0, atol=8e-3)  # ten steps' tolerance in 8 dimensions
    assert rademacher.std() < 1e-9
    gaussian_probes, _ = log_likelihood(denoiser, x, noise="gaussian", generator=generator(), **settings)
    assert gaussian_probes.std() > 1


# ---- encoding


@every_sde
@pytest.mark.parametrize("build", [lambda sde: mixture(sde, 0.7), Correlated])
def test_decoding_returns_what_was_encoded(sde: SDE, build: Callable[[SDE], Any]) -> None:
    """Each step errs by rtol·|x_t| + atol in the root mean square of the dimensions, √d of it in one of them at most.

    Back at t_min that has shrunk with the distribution, to at most rtol·|x| + atol; so the bound is that times √d and
    the number of steps, a sixth of the evaluations, of both directions (which take about the same).
    """
    denoiser = build(sde)
    x = draws(denoiser, 16) if isinstance(denoiser, GaussianMixtureDenoiser) else denoiser.draw(16)
    rtol = atol = 1e-5
    _, z = log_likelihood(denoiser, x, rtol=rtol, atol=atol, generator=generator())
    decode = ProbabilityFlowODE(rtol=rtol, atol=atol, denoise=False)
    back = decode(denoiser, x.shape, x_T=z)
    steps = 2 * decode.nfe / 6
    # the largest |x| of an example: its dimensions share the root mean square
    size = x.abs().amax(1, keepdim=True)
    assert ((back - x).abs() <= steps * math.sqrt(3) * (rtol * size + atol)).all()
    assert (z - x).abs().max() > 0.1


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_latent_code_needs_no_luck(noise: Any) -> None:
    """z is the same, to the tolerances, whatever the probes; and has the prior's size."""
    denoiser = Correlated(VPSDE())
    x = denoiser.draw(200)
    first, second = (log_likelihood(denoiser, x, noise=noise, generator=generator(seed))[1] for seed in (1, 2))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-3)
    assert abs((first**2).mean().item() - 1) < 4 * math.sqrt(2 / 600)


# ---- bits per dimension


def cell_probabilities(std: float) -> Tensor:
    """P(k) of N(0, std²), k = 0 … 255, by erf; what lies beyond counts to the ends."""
    normal = torch.distributions.Normal(double(0.0), double(std))
    below = normal.cdf(torch.arange(1, 256, dtype=torch.float64) * CELL - 1)
    return torch.cat([below[:1], below.diff(), 1 - below[-1:]])


def dequantized_bits(std: float) -> tuple[Tensor, Tensor]:
    """Mean and second moment over u of −log₂ p(x) + log₂ 128 for every level, N(0, std²), by quadrature."""
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    x = (torch.arange(256, dtype=torch.float64)[:, None] + u) * CELL - 1
    bits = -torch.distributions.Normal(double(0.0), double(std)).log_prob(x) / math.log(2) + 7
    # minus, for a density is per unit and a cell is 1/128 of it: −log₂(p/128)
    return bits.mean(1), (bits**2).mean(1)


def effective_std(sde: SDE, std: float) -> float:
    """Of N(0, std²) at t_min."""
    t = double(sde.t_min)
    return math.hypot(std * sde.alpha(t).item(), sde.sigma(t).item())


@every_sde
def test_bits_of_a_gaussian_are_seven_minus_its_log_density(sde: SDE) -> None:
    """Against Normal.log_prob averaged over the cell: what is left is the luck of u, shared by 256 pixels."""
    std = 0.15
    denoiser = gaussian(sde, (1, 16, 16), std, torch.float32)
    spread = effective_std(sde, std)
    levels = (128 * (1 + spread * torch.randn(4, 1, 16, 16, generator=generator()))).floor().clamp(0, 255)
    bits = bits_per_dim(denoiser, levels.to(torch.uint8), generator=generator(1))
    assert bits.shape == (4,)
    mean, second = (moments[levels.long()].flatten(1).mean(1) for moments in dequantized_bits(spread))
    variance = dequantized_bits(spread)[1] - dequantized_bits(spread)[0] ** 2
    error = (variance[levels.long()].flatten(1).mean(1) / 256).sqrt()
    assert (second >= mean**2).all()
    # 4 standard errors, and 3e-4 for solver and prior, whose variance is wrong by std²/97 at most: ½·2.3e-4·(1 ± …)
    assert ((bits - mean).abs() < 4 * error + 3e-4).all()


@pytest.mark.parametrize("std", [0.2, 0.01])
def test_bits_of_data_drawn_from_the_model_are_above_its_entropy_by_what_dequantization_costs(std: float) -> None:
    """The gap, the mean divergence of the uniform from p within a cell, is about 1/(24·(128·std)²) nats.

    That is 7e-5 nats for std = 0.2 and 2.5e-2 for 0.01: both the entropy and the expected bits come from erf and
    quadrature.
    """
    sde = KarrasSDE()
    spread = effective_std(sde, std)
    probabilities = cell_probabilities(spread)
    entropy = torch.distributions.Categorical(probabilities).entropy().item() / math.log(2)
    mean, second = ((moments * probabilities).sum().item() for moments in dequantized_bits(spread))
    assert mean - entropy == pytest.approx(1 / (24 * (128 * spread) ** 2) / math.log(2), rel=0.2)

    n, pixels = 64, 256
    levels = torch.multinomial(probabilities, n * pixels, replacement=True, generator=generator(5))
    images = levels.reshape(n, 1, 16, 16).to(torch.uint8)
    bits = bits_per_dim(gaussian(sde, (1, 16, 16), std, torch.float32), images, generator=generator(1)).mean().item()
    standard_error = math.sqrt((second - mean**2) / (n * pixels))
    assert abs(bits - mean) < 3 * standard_error + 2e-4  # of the solver
    # most of that luck is which levels were drawn; without it the bound must show
    of_these_levels = -probabilities.log2()[levels].mean().item()
    paired = dequantized_bits(spread)[1] - dequantized_bits(spread)[0] ** 2
    luck = math.sqrt((paired * probabilities).sum().item() / (n * pixels))
    assert abs(bits - of_these_levels - (mean - entropy)) < 4 * luck + 2e-4 + (mean - entropy) / 10


def test_uniform_noise_costs_more_than_eight_bits_under_a_wide_gaussian() -> None:
    """Of uniform levels, E[−log₂ p] = log₂(√(2π)·s) + 1/(6s² ln 2), which is smallest at s² = 1/3, 0.25 above 8."""
    sde, std, n = KarrasSDE(), 3**-0.5, 64
    images = torch.randint(0, 256, (n, 1, 16, 16), generator=generator(4), dtype=torch.uint8)
    bits = bits_per_dim(gaussian(sde, (1, 16, 16), std, torch.float32), images, generator=generator(1))
    expected = 7 + math.log2(math.sqrt(2 * math.pi) * std) + 1 / (6 * std**2 * math.log(2))
    # x²/(2s² ln 2) has the variance (1/5 − 1/9)/(2s² ln 2)² under U[-1, 1]; the prior errs by ½·std²/80²
    standard_error = math.sqrt((1 / 5 - 1 / 9) / (n * 256)) / (2 * std**2 * math.log(2))
    assert abs(bits.mean().item() - expected) < 3 * standard_error + 3e-4
    assert bits.min() > 8


def test_the_offset_is_seven() -> None:
    """A flat density on [-1, 1], ½ in each dimension, costs 8 bits: 7 + log₂ 2. Here a Gaussian's flat top."""
    sde = KarrasSDE(0.002, 8000.0)
    std = 40.0  # over [-1, 1] its density falls by 3e-4
    images = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    bits = bits_per_dim(gaussian(sde, (1, 16, 16), std, torch.float32), images, generator=generator())
    assert bits.item() == pytest.approx(7 + math.log2(math.sqrt(2 * math.pi) * std), abs=2e-3)


def test_bytes_and_floats_give_the_same_bits() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    denoiser = gaussian(KarrasSDE(), (1, 8, 8), 0.5, torch.float32)
    of_bytes = bits_per_dim(denoiser, images, generator=generator())
    of_floats = bits_per_dim(denoiser, images / 127.5 - 1, generator=generator())
    assert torch.equal(of_bytes, of_floats)
    of_doubles = bits_per_dim(denoiser, images.double() / 127.5 - 1, generator=generator())
    torch.testing.assert_close(of_doubles.float(), of_bytes, rtol=0, atol=1e-4)


# ---- batches, conditions, randomness, the model


@pytest.mark.parametrize(
    "build",
    [lambda: mixture(VPSDE(), 0.5), lambda: attentive(torch.float64)],
    ids=["mixture", "unet with attention"],
)
def test_nats_do_not_depend_on_the_batch_size(build: Callable[[], Denoiser]) -> None:
    """Same probes, other step sizes: the difference is the tolerance of 1e-4 nats at each of some 30 steps."""
    denoiser = build()
    shape = (5, 3) if isinstance(denoiser, GaussianMixtureDenoiser) else (5, 1, 3, 3)
    x = 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator())
    settings: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    nats, z = log_likelihood(denoiser, x, generator=generator(3), **settings)
    for batch_size in (2, 99):
        split, latents = log_likelihood(denoiser, x, generator=generator(3), batch_size=batch_size, **settings)
        assert (split - nats).abs().max() / x[0].numel() < 3e-3
        assert ((latents - z).abs() < 3e-3 * z.abs().amax()).all()
    other, _ = log_likelihood(denoiser, x, generator=generator(4), **settings)
    assert (other - nats).abs().max() / x[0].numel() > 1e-2


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_bits_of_a_real_network_do_not_depend_on_the_batch_size(divergence: Any) -> None:
    denoiser = attentive()
    side = 2 if divergence == "exact" else 4
    images = torch.randint(0, 256, (3, 1, side, side), generator=generator(4), dtype=torch.uint8)
    settings: dict[str, Any] = {"divergence": divergence}
    bits = bits_per_dim(denoiser, images, generator=generator(3), **settings)
    split = bits_per_dim(denoiser, images, generator=generator(3), batch_size=2, **settings)
    assert (split - bits).abs().max() < 1e-4


def test_labels_are_split_with_the_images() -> None:
    denoiser = attentive(num_classes=3)
    images = torch.randint(0, 256, (3, 1, 3, 3), generator=generator(4), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])

    def bits(**settings: Any) -> Tensor:
        return bits_per_dim(denoiser, images, generator=generator(3), rtol=1e-4, atol=1e-4, **settings)

    together, others = bits(labels=labels), bits(labels=2 - labels)
    torch.testing.assert_close(bits(labels=labels, batch_size=2), together, rtol=0, atol=1e-3)
    assert (together - bits()).abs().min() > 3e-3
    assert (together - others).abs()[labels != 1].min() > 3e-3
    assert (together - others).abs()[labels == 1].max() < 1e-3


def test_conditions_that_are_not_tensors_are_passed_on_whole() -> None:
    seen: list[dict[str, Any]] = []

    class Sees(GaussianMixtureDenoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append(cond)
            return super().denoise(x, t)

    denoiser = Sees(torch.zeros(1, 2), torch.ones(1), torch.ones(1), VPSDE())
    scale = torch.arange(5)[:, None]
    log_likelihood(denoiser, torch.ones(5, 2), batch_size=2, generator=generator(), strength=1.5, scale=scale)
    assert all(cond["strength"] == 1.5 for cond in seen)
    assert {tuple(cond["scale"].flatten().tolist()) for cond in seen} == {(0, 1), (2, 3), (4,)}


def test_a_generator_decides_alone() -> None:
    denoiser = attentive()
    images = torch.randint(0, 256, (2, 1, 3, 3), generator=generator(4), dtype=torch.uint8)

    def bits(seed: int | None) -> Tensor:
        draws = None if seed is None else generator(seed)
        return bits_per_dim(denoiser, images, generator=draws, rtol=1e-2, atol=1e-2)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = bits(3)
    # the exact divergence draws nothing
    log_likelihood(mixture(VPSDE(), 1.0), torch.ones(2, 3, dtype=torch.float64), divergence="exact")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(bits(3), first)
    assert not torch.equal(bits(5), first)
    torch.manual_seed(3)
    first, second = bits(None), bits(None)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(bits(None), first)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_the_model_is_left_as_it_was(context: Any) -> None:
    denoiser = attentive(num_classes=3)
    next(denoiser.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in denoiser.parameters()]
    weights = [parameter.detach().clone() for parameter in denoiser.parameters()]
    x = (torch.arange(32).reshape(2, 1, 4, 4) / 32).requires_grad_()
    with context():
        nats, z = log_likelihood(denoiser, x, rtol=1e-2, generator=generator(), labels=torch.tensor([0, 1]))
    assert [parameter.requires_grad for parameter in denoiser.parameters()] == flags
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert all(map(torch.equal, denoiser.parameters(), weights))
    assert x.grad is None
    assert not nats.requires_grad
    assert not z.requires_grad


def test_progress_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    denoiser, x = mixture(VPSDE(), 1.0), torch.ones(2, 3, dtype=torch.float64)
    log_likelihood(denoiser, x, generator=generator(), batch_size=1)
    assert capfd.readouterr().err == ""
    log_likelihood(denoiser, x, generator=generator(), batch_size=1, progress=True)
    assert "likelihood" in capfd.readouterr().err


# ---- what is refused


def points(*, value: float = 0.5) -> Tensor:
    return torch.full((2, 3), value, dtype=torch.float64)


BAD: dict[str, tuple[Tensor, dict[str, Any], str]] = {
    "NaN": (points(value=math.nan), {}, "NaN or infinite"),
    "infinite": (points(value=math.inf), {}, "NaN or infinite"),
    "no example": (torch.zeros(0, 3), {}, r"\(0, 3\).*at least one example"),
    "no dimension": (torch.zeros(2, 0), {}, r"\(2, 0\).*one dimension"),
    "no axis of examples": (torch.zeros(3), {}, r"\(3,\).*must be \(B, …\)"),
    "divergence": (points(), {"divergence": "trace"}, "divergence='trace'.*hutchinson, exact"),
    "noise": (points(), {"noise": "uniform"}, "noise='uniform'.*rademacher, gaussian"),
    "method": (points(), {"method": "rk4"}, "method='rk4'.*dopri5"),
    "rtol 0": (points(), {"rtol": 0.0}, "rtol=0.0: must be positive"),
    "rtol negative": (points(), {"rtol": -1e-5}, "rtol=-1e-05: must be positive"),
    "rtol NaN": (points(), {"rtol": math.nan}, "rtol=nan: must be positive"),
    "atol 0": (points(), {"atol": 0.0}, "atol=0.0: must be positive"),
    "atol NaN": (points(), {"atol": math.nan}, "atol=nan: must be positive"),
    "t_min low": (points(), {"t_min": 1e-6}, r"t_min=1e-06: must be in \[1e-05, 1\)"),
    "t_min at T": (points(), {"t_min": 1.0}, r"t_min=1.0: must be in \[1e-05, 1\)"),
    "t_min NaN": (points(), {"t_min": math.nan}, "t_min=nan: must be in"),
    "batch_size 0": (points(), {"batch_size": 0}, "batch_size=0: must be at least 1"),
    "batch_size negative": (points(), {"batch_size": -2}, "batch_size=-2: must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    x, settings, message = BAD[case]
    denoiser = mixture(VPSDE(), 1.0)
    with pytest.raises(ValueError, match=message):
        log_likelihood(denoiser, x, generator=generator(), **settings)


BAD_IMAGES: dict[str, tuple[Tensor, str]] = {
    "not of 8 bits": (torch.full((1, 1, 2, 2), 0.123), "not of 8 bits"),
    "in [0, 1]": (torch.arange(4).reshape(1, 1, 2, 2) / 255, "not of 8 bits"),
    "above 1": (torch.full((1, 1, 2, 2), 256 / 127.5 - 1), "not of 8 bits"),
    "below -1": (torch.full((1, 1, 2, 2), -1 / 127.5 - 1), "not of 8 bits"),
    "NaN": (torch.full((1, 1, 2, 2), math.nan), "not of 8 bits"),
    "infinite": (torch.full((1, 1, 2, 2), math.inf), "not of 8 bits"),
    "int64": (torch.full((1, 1, 2, 2), 7), "dtype torch.int64: must be uint8"),
    "bool": (torch.ones(1, 1, 2, 2, dtype=torch.bool), "dtype torch.bool: must be uint8"),
    "no image, bytes": (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), "at least one example"),
    "no image, floats": (torch.zeros(0, 1, 2, 2), "at least one example"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(case: str) -> None:
    images, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message):
        bits_per_dim(gaussian(VPSDE(), (1, 2, 2), 0.5, torch.float32), images, generator=generator())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: ScoreNet((32, 32), embed_dim=8), (2, 1, 8, 8)),
        (lambda: UNet(channels=(4,), num_res_blocks=1, embed_dim=8, num_heads=1), (2, 1, 4, 4)),
    ],
    ids=["ScoreNet", "UNet"],
)
def test_labels_for_a_network_without_classes_are_refused(network: Any, shape: tuple[int, ...]) -> None:
    denoiser = NetworkDenoiser(network(), VPSDE(), NoisePrediction())
    images = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels|class"):
        bits_per_dim(denoiser, images, generator=generator(), labels=torch.tensor([0, 1]))


def test_labels_of_another_number_are_refused() -> None:
    denoiser, images = attentive(num_classes=3), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    for labels in (torch.tensor([0]), torch.tensor([0, 1, 2])):
        with pytest.raises(ValueError, match="labels"):
            bits_per_dim(denoiser, images, rtol=1e-2, atol=1e-2, generator=generator(), labels=labels)


def test_a_network_that_gives_no_numbers_is_an_error_and_not_a_hang() -> None:
    class Broken(Denoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x / expand(torch.where(t > 0.3, 0.0, 1.0), x)

    with pytest.raises(FloatingPointError, match="not finite or not smooth"):
        log_likelihood(Broken(VPSDE()), torch.ones(2, 3), generator=generator())


def test_it_works_in_inference_mode() -> None:
    """In which Lightning validates: what is made there cannot be differentiated, not even the labels."""
    network = UNet(channels=(8,), num_res_blocks=1, embed_dim=8, middle_attention=False, num_classes=3).eval()
    denoiser = NetworkDenoiser(network, VPSDE(), NoisePrediction())

    def solve() -> torch.Tensor:
        x, labels = torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])
        generator = torch.Generator().manual_seed(0)
        return log_likelihood(denoiser, x, rtol=1e-2, atol=1e-2, generator=generator, labels=labels)[0]

    with torch.inference_mode():
        inside = solve()
    assert torch.equal(inside.clone(), solve())


def test_double_precision_images_suit_a_network_of_single_precision() -> None:
    denoiser = NetworkDenoiser(
        UNet(channels=(8,), num_res_blocks=1, embed_dim=8, middle_attention=False), VPSDE(), NoisePrediction()
    )
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    bits = [
        bits_per_dim(
            denoiser, given, rtol=1e-2, atol=1e-2, divergence="exact", generator=torch.Generator().manual_seed(0)
        )
        for given in (images / 127.5 - 1, images.double() / 127.5 - 1)
    ]
    torch.testing.assert_close(*bits, atol=1e-3, rtol=0)
