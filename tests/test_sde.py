"""The forward processes, against their differential equations, their closed forms and their own simulation."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
    standard_normal,
)

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "power, small base": PowerVESDE(1.5),
    "ve": VESDE(),
    "ve, narrow": VESDE(0.1, 3.0),
    "vp": VPSDE(),
    "vp, constant beta": VPSDE(4.0, 4.0),
    "subvp": SubVPSDE(),
    "subvp, constant beta": SubVPSDE(4.0, 4.0),
    "karras": KarrasSDE(),
    "karras, narrow": KarrasSDE(0.05, 10.0, rho=3.0),
    "cosine": CosineVPSDE(),
    "cosine, large offset": CosineVPSDE(0.2),
    "flow": RectifiedFlow(),
    "discrete vp": DiscreteVPSDE(),
    "discrete vp, short": DiscreteVPSDE(30, 1e-3, 0.4),
    "discrete vp, constant beta": DiscreteVPSDE(40, 0.1, 0.1),
    "discrete vp, cosine": DiscreteVPSDE(50, schedule="cosine"),
    "discrete ve": DiscreteVESDE(),
    "discrete ve, wide": DiscreteVESDE(100, 0.01, 50.0),
}
DEFAULTS = ["power", "ve", "vp", "subvp", "karras"]
ONE_OF_EACH = [*DEFAULTS, "cosine", "flow", "discrete vp, short", "discrete vp, cosine", "discrete ve"]
DISCRETE = [name for name, sde in SDES.items() if sde.times is not None]
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def whole_range(sde: SDE) -> Tensor:
    """Times from t_min to T, both ends included, dense at both ends of the logarithmic scale."""
    linear = torch.linspace(sde.t_min, sde.T, 101, dtype=torch.float64)
    logarithmic = torch.exp(torch.linspace(math.log(sde.t_min), math.log(sde.T), 101, dtype=torch.float64))
    return torch.cat([linear, logarithmic]).clamp(sde.t_min, sde.T)


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    t = t.clone().requires_grad_()
    value = function(t)
    if not value.requires_grad:  # a constant
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]


def integral(function: Callable[[Tensor], Tensor], s: Tensor, t: Tensor, sde: SDE) -> float:
    """Simpson's rule from s to t, in pieces on which the process is smooth: between the times of a grid, and towards 1.

    Towards 1 the pieces halve, as the rectified flow's coefficients are infinite there.
    """
    if sde.times is None:
        panels, inner = 10_000, 1 - 0.5 ** torch.arange(1, 12, dtype=torch.float64)
    else:
        panels, size = 400, len(sde.times)
        inner = torch.arange(1, size + 1, dtype=torch.float64) / size
    edges = torch.cat([s, inner[(inner > s) & (inner < t)], t])
    weights = torch.ones(panels + 1, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    points = edges[:-1, None] + edges.diff()[:, None] * torch.linspace(0, 1, panels + 1, dtype=torch.float64)
    return ((weights * function(points)).sum(1) * edges.diff()).sum().item() / (3 * panels)


def rounding(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """How much the function changes, in double precision, when t moves by four units in its last place of float32."""
    little = 4 * torch.finfo(torch.float32).eps * t.double()
    return (function(t.double() + little) - function(t.double() - little)).abs()


# ---- the four functions


@every_sde
def test_drift_rate_is_the_logarithmic_derivative_of_alpha(sde: SDE) -> None:
    t = whole_range(sde)
    rate = derivative(lambda t: torch.log(sde.alpha(t)), t)
    torch.testing.assert_close(sde.drift_rate(t), rate, rtol=1e-10, atol=1e-12)


@every_sde
def test_diffusion_is_what_the_variance_grows_by(sde: SDE) -> None:
    t = whole_range(sde)
    growth = derivative(lambda t: sde.sigma(t) ** 2, t)
    noise = sde.diffusion(t) ** 2
    # the two terms cancel where α is small: there, what is left of them in double precision
    difference = 2 * sde.drift_rate(t) * sde.sigma(t) ** 2 + noise - growth
    assert (difference.abs() <= 1e-9 * growth.abs() + 1e-13 + 1e-14 * noise).all()


@every_sde
def test_time_at_inverts_the_noise_level(sde: SDE) -> None:
    t = whole_range(sde)
    torch.testing.assert_close(sde.time_at(sde.noise_level(t)), t, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(sde.noise_level(sde.time_at(sde.noise_level(t))), sde.noise_level(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.noise_level(t), sde.sigma(t) / sde.alpha(t))
    assert (sde.noise_level(torch.linspace(sde.t_min, sde.T, 10_001, dtype=torch.float64)).diff() > 0).all()
    # in the precision of training
    torch.testing.assert_close(sde.time_at(sde.noise_level(t.float())), t.float(), rtol=1e-4, atol=1e-6)


@every_sde
def test_single_precision_loses_nothing_even_at_the_smallest_time(sde: SDE) -> None:
    t = whole_range(sde).float()  # the exact values at these very times
    for function in (sde.alpha, sde.sigma, sde.drift_rate, sde.diffusion):
        value, exact = function(t), function(t.double())
        assert value.shape == t.shape
        # Or, where α falls steeply, no worse than if t itself had been rounded. The slope of a table of ln α is a
        # difference: of two numbers up to 10, each rounded by 2⁻²², and at least 0.01; times Hermite's 6u(1 − u) ≤ 1.5.
        steep = function in (sde.drift_rate, sde.diffusion) and isinstance(sde, DiscreteVPSDE)
        assert ((value.double() - exact).abs() <= (1e-4 if steep else 1e-5) * exact.abs() + rounding(function, t)).all()


@pytest.mark.parametrize(
    "name",
    ["vp", "vp, constant beta", "cosine", "cosine, large offset"] + [name for name in DISCRETE if "vp" in name],
)
def test_the_variance_preserving_process_preserves_unit_variance(name: str) -> None:
    t = whole_range(SDES[name])
    torch.testing.assert_close(
        SDES[name].alpha(t) ** 2 + SDES[name].sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14
    )


def test_sub_vp_has_the_drift_of_vp_and_the_square_of_its_noise() -> None:
    vp, sub = VPSDE(), SubVPSDE()
    t = whole_range(vp)
    torch.testing.assert_close(sub.alpha(t), vp.alpha(t))
    torch.testing.assert_close(sub.drift_rate(t), vp.drift_rate(t))
    torch.testing.assert_close(sub.sigma(t), vp.sigma(t) ** 2, rtol=1e-12, atol=0)
    assert (sub.diffusion(t) < vp.diffusion(t))[:100].all()


@every_sde
def test_variance_exploding_processes_alone_never_shrink_the_data(sde: SDE) -> None:
    t = whole_range(sde)
    assert sde.variance_exploding == isinstance(sde, PowerVESDE | VESDE | KarrasSDE | DiscreteVESDE)
    assert bool((sde.alpha(t) == 1).all()) == sde.variance_exploding
    assert bool((sde.drift_rate(t) == 0).all()) == sde.variance_exploding


@every_sde
def test_rates_are_the_derivatives_of_alpha_and_sigma(sde: SDE) -> None:
    """Also by the formula for any process, and in single precision."""
    t = whole_range(sde)
    by_autograd = derivative(sde.alpha, t), derivative(sde.sigma, t)
    for rate, exact, general in zip(sde.rates(t), by_autograd, SDE.rates(sde, t), strict=True):
        assert rate.shape == t.shape
        torch.testing.assert_close(rate, exact, rtol=1e-9, atol=1e-12)
        # ½g² and fσ² cancel down to σσ' where α is small
        assert ((general - exact).abs() <= 1e-9 * exact.abs() + 1e-13 + 1e-14 * sde.diffusion(t) ** 2).all()
    single = t.float()
    for i in (0, 1):
        exact = sde.rates(single.double())[i]
        error = (sde.rates(single)[i].double() - exact).abs()
        of_time = rounding(lambda t, i=i: sde.rates(t)[i], single)
        assert (error <= (1e-4 if isinstance(sde, DiscreteVPSDE) else 1e-5) * exact.abs() + of_time).all()


def test_known_values() -> None:
    zero, half, one = double(0.0), double(0.5), double(1.0)

    power = PowerVESDE(25.0)
    assert power.sigma(one).item() == pytest.approx(math.sqrt((25**2 - 1) / (2 * math.log(25))), rel=1e-12)
    assert power.sigma(one).item() == pytest.approx(9.8453, abs=1e-4)
    assert power.sigma(zero).item() == 0
    assert [power.diffusion(t).item() for t in (zero, half, one)] == pytest.approx([1, 5, 25], rel=1e-12)

    ve = VESDE(0.01, 50.0)
    assert [ve.sigma(t).item() for t in (zero, half, one)] == pytest.approx([0.01, math.sqrt(0.5), 50], rel=1e-12)
    assert ve.diffusion(one).item() == pytest.approx(50 * math.sqrt(2 * math.log(5000)), rel=1e-12)

    vp = VPSDE(0.1, 20.0)
    assert [vp.beta(t).item() for t in (zero, half, one)] == pytest.approx([0.1, 10.05, 20])
    assert vp.alpha(one).item() == pytest.approx(math.exp(-10.05 / 2), rel=1e-12)  # ∫β = (0.1 + 20)/2
    assert vp.alpha(half).item() == pytest.approx(math.exp(-(0.05 + 19.9 / 8) / 2), rel=1e-12)
    assert vp.sigma(one).item() == pytest.approx(math.sqrt(1 - math.exp(-10.05)), rel=1e-12)
    assert vp.diffusion(half).item() == pytest.approx(math.sqrt(10.05), rel=1e-12)
    assert vp.drift_rate(half).item() == pytest.approx(-10.05 / 2, rel=1e-12)

    sub = SubVPSDE(0.1, 20.0)
    assert sub.sigma(one).item() == pytest.approx(1 - math.exp(-10.05), rel=1e-12)
    assert sub.diffusion(one).item() == pytest.approx(math.sqrt(20 * (1 - math.exp(-20.1))), rel=1e-12)

    cosine = CosineVPSDE(0.008)
    at = [math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2) for t in (0, 0.5, 0.9946)]
    times = double(0.0, 0.5, 0.9946)
    assert cosine.alpha(times).tolist() == pytest.approx(at, rel=1e-12)
    assert at[2] == pytest.approx(0.0084, abs=1e-4)
    beta = [math.pi / 1.008 * math.tan((t + 0.008) / 1.008 * math.pi / 2) for t in (0, 0.5, 0.9946)]
    assert (cosine.diffusion(times) ** 2).tolist() == pytest.approx(beta, rel=1e-12)
    assert (-2 * cosine.drift_rate(times)).tolist() == pytest.approx(beta, rel=1e-12)

    flow, third = RectifiedFlow(), double(1 / 3)
    assert [f(third).item() for f in (flow.alpha, flow.sigma)] == pytest.approx([2 / 3, 1 / 3], rel=1e-12)
    assert [f(third).item() for f in (flow.drift_rate, flow.diffusion)] == pytest.approx([-1.5, 1], rel=1e-12)
    assert [rate.item() for rate in flow.rates(third)] == [-1, 1]
    assert [flow.transition(half, third)[i].item() for i in (0, 1)] == pytest.approx([0.75, 0.25 - 1 / 16], rel=1e-12)

    karras = KarrasSDE()
    assert (karras.t_min, karras.T) == (0.002, 80.0)
    assert karras.sigma(double(3.0)).item() == 3
    assert karras.diffusion(double(8.0)).item() == 4


def test_vp_is_the_limit_of_ddpm() -> None:
    """∏(1 − β(i/N)/N) → α(1)², the ᾱ_N of Ho et al. 2020."""
    sde, n = VPSDE(), 200_000
    betas = sde.beta(torch.arange(1, n + 1, dtype=torch.float64) / n) / n
    limit = torch.log1p(-betas).sum()
    torch.testing.assert_close(limit, 2 * sde.alpha(double(1.0)).log().squeeze(), rtol=1e-3, atol=0)


# ---- what follows from them: marginal, perturbation, drift, transition


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 5)])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_marginal_and_perturbation_are_their_formulas(name: str, shape: tuple[int, ...]) -> None:
    sde = SDES[name]
    x0, z = (torch.randn(shape, dtype=torch.float64, generator=generator(seed)) for seed in (1, 2))
    t = sde.t_min + (sde.T - sde.t_min) * double(0.1, 0.5, 0.9)
    mean, std = sde.marginal(x0, t)
    assert std.shape == (3, *[1] * (len(shape) - 1))
    for i in range(3):
        alpha, sigma = sde.alpha(t)[i], sde.sigma(t)[i]
        torch.testing.assert_close(mean[i], alpha * x0[i])
        torch.testing.assert_close(std[i].squeeze(), sigma)
        torch.testing.assert_close(sde.perturb(x0, t, z)[i], alpha * x0[i] + sigma * z[i])
        torch.testing.assert_close(sde.drift(x0, t)[i], sde.drift_rate(t)[i] * x0[i])


@every_sde
def test_transition_solves_the_sde_between_two_times(sde: SDE) -> None:
    """α_{t|s} = exp ∫f and σ²_{t|s} = ∫ g(r)²·(α_t/α_r)² dr, both by quadrature."""
    span = sde.T - sde.t_min
    for low, high in ((0.0, 0.02), (0.0, 1.0), (0.3, 0.31), (0.3, 0.7), (0.95, 1.0)):
        s, t = double(sde.t_min + low * span), double(sde.t_min + high * span)
        ratio, variance = sde.transition(t, s)
        assert math.log(ratio.item()) == pytest.approx(integral(sde.drift_rate, s, t, sde), rel=1e-9, abs=1e-12)
        fresh = integral(lambda r, t=t: (sde.diffusion(r) * sde.alpha(t) / sde.alpha(r)) ** 2, s, t, sde)
        assert variance.item() == pytest.approx(fresh, rel=1e-7)


@every_sde
def test_transitions_compose(sde: SDE) -> None:
    times = sde.t_min + (sde.T - sde.t_min) * torch.rand(200, 3, dtype=torch.float64, generator=generator())
    s, u, t = times.sort(1).values.T
    ratio_su, variance_su = sde.transition(u, s)
    ratio_ut, variance_ut = sde.transition(t, u)
    ratio, variance = sde.transition(t, s)
    torch.testing.assert_close(ratio_ut * ratio_su, ratio)
    torch.testing.assert_close(ratio_ut**2 * variance_su + variance_ut, variance)
    # and from the marginal at s to the marginal at t
    torch.testing.assert_close(ratio * sde.alpha(s), sde.alpha(t))
    torch.testing.assert_close(ratio**2 * sde.sigma(s) ** 2 + variance, sde.sigma(t) ** 2)
    assert (variance > 0).all()


@every_sde
def test_short_transitions_survive_single_precision(sde: SDE) -> None:
    t = sde.timesteps(1000)
    ratio, variance = sde.transition(t[:-1], t[1:])
    exact_ratio, exact_variance = sde.transition(t[:-1].double(), t[1:].double())
    # where α falls steeply, no worse than if the two times had been rounded
    relative = rounding(lambda t: sde.alpha(t).log(), t)
    bound = 1e-6 + relative[:-1] + relative[1:]
    assert ((ratio.double() / exact_ratio - 1).abs() <= bound).all()
    steep = 2 * exact_ratio**2 * (relative[:-1] + relative[1:])
    assert ((variance.double() - exact_variance).abs() <= 1e-3 * exact_variance + steep).all()
    assert (variance > 0).all()


@pytest.mark.parametrize("name", DEFAULTS)
def test_simulated_paths_have_the_marginals_mean_and_std(name: str) -> None:
    """The SDE itself, dx = f x dt + g dw, simulated forwards with its coefficients taken at the middle of each step.

    The bounds are five standard errors of the mean and of the standard deviation of n Gaussian draws.
    """
    sde, n, steps, x0 = SDES[name], 10_000, 600, 3.0
    noise = generator(5)
    edges = torch.linspace(sde.t_min, sde.T, steps + 1, dtype=torch.float64)
    start = edges[:1]
    x = sde.alpha(start) * x0 + sde.sigma(start) * torch.randn(n, dtype=torch.float64, generator=noise)
    middle, dt = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    rates, coefficients = sde.drift_rate(middle), sde.diffusion(middle)
    for i in range(steps):
        # the drift of the linear SDE is followed to second order, so that the bounds are those of chance alone
        x = x * (1 + rates[i] * dt + (rates[i] * dt) ** 2 / 2)
        x = x + coefficients[i] * dt.sqrt() * torch.randn(n, dtype=torch.float64, generator=noise)
        if i + 1 in (steps // 4, steps // 2, steps):
            mean, std = sde.marginal(double(x0), edges[i + 1 : i + 2])
            assert abs(x.mean() - mean) < 5 * std / n**0.5
            assert abs(x.std() - std) < 5 * std / (2 * n) ** 0.5


# ---- the prior


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_prior_is_normal_with_the_last_sigma(name: str) -> None:
    sde = SDES[name]
    std = sde.sigma(double(sde.T)).item()
    z = sde.prior((1000, 3, 5), generator=generator())
    assert z.shape == (1000, 3, 5)
    assert z.dtype == torch.float32
    n = z.numel()
    assert abs(z.mean().item()) < 5 * std / n**0.5
    assert abs(z.std().item() - std) < 5 * std / (2 * n) ** 0.5
    assert abs((z / std).pow(4).mean().item() - 3) < 5 * math.sqrt(96 / n)  # the fourth moment tells it from uniform
    torch.testing.assert_close(z, std * torch.randn(1000, 3, 5, generator=generator()))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3, 3)])
def test_prior_log_prob_is_the_normal_density(name: str, shape: tuple[int, ...]) -> None:
    sde = SDES[name]
    variance = sde.sigma(double(sde.T)).item() ** 2
    z = 2 * torch.randn(shape, dtype=torch.float64, generator=generator())
    d = math.prod(shape[1:])
    flat = z.reshape(4, d)
    by_hand = -(flat**2).sum(1) / (2 * variance) - d / 2 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(sde.prior_log_prob(z), by_hand)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(d, dtype=torch.float64), variance * torch.eye(d, dtype=torch.float64)
    )
    torch.testing.assert_close(sde.prior_log_prob(z), normal.log_prob(flat))


def test_noise_comes_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = standard_normal((4, 5), generator=generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(standard_normal((4, 5), generator=generator(3)), first)
    assert torch.equal(first, torch.randn(4, 5, generator=generator(3)))
    assert not torch.equal(standard_normal((4, 5), generator=generator(4)), first)
    assert standard_normal((2,), dtype=torch.float64).dtype == torch.float64
    # drawn where the generator is, then moved
    assert standard_normal((2,), device="meta", generator=generator(3)).device.type == "meta"


def test_expand_adds_axes() -> None:
    value = torch.tensor([1.0, 2.0])
    assert expand(value, torch.zeros(2, 3)).shape == (2, 1)
    assert torch.equal(expand(value, torch.zeros(2, 3, 4, 5)), value[:, None, None, None])
    assert torch.equal(expand(value, torch.zeros(2)), value)


# ---- the grid


@every_sde
@pytest.mark.parametrize("n", [1, 2, 18, 1000])
def test_timesteps_run_from_the_last_time_to_the_first(sde: SDE, n: int) -> None:
    t = sde.timesteps(n)
    assert t.shape == (n + 1,)
    assert t.dtype == torch.float32
    assert t[0].item() == torch.tensor(sde.T).item()
    assert t[-1].item() == torch.tensor(sde.t_min).item()
    assert (t.diff() < 0).all()


@pytest.mark.parametrize("name", ["power", "ve", "vp", "subvp"])
def test_timesteps_are_uniform_in_time(name: str) -> None:
    sde = SDES[name]
    by_hand = [1 + (i / 40) * (1e-5 - 1) for i in range(41)]
    torch.testing.assert_close(sde.timesteps(40), torch.tensor(by_hand))


@pytest.mark.parametrize("name", ["karras", "karras, narrow"])
def test_karras_timesteps_are_equation_5(name: str) -> None:
    sde = SDES[name]
    assert isinstance(sde, KarrasSDE)
    low, high, rho, n = sde.sigma_min, sde.sigma_max, sde.rho, 18
    by_hand = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho  # the paper's N is n
        for i in range(n)
    ]
    torch.testing.assert_close(sde.timesteps(n - 1), torch.tensor(by_hand), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_timesteps_of_bounded_processes_are_uniform_in_time(name: str) -> None:
    low, high = {"cosine": (1e-5, 0.9946), "flow": (1e-3, 0.999)}[name]
    by_hand = [high + (i / 40) * (low - high) for i in range(41)]
    torch.testing.assert_close(SDES[name].timesteps(40), torch.tensor(by_hand))


@pytest.mark.parametrize("name", DISCRETE)
def test_timesteps_of_discrete_processes_are_on_their_grid(name: str) -> None:
    sde = SDES[name]
    grid = sde.times
    assert grid is not None
    size = len(grid)
    assert torch.equal(grid, torch.tensor([i / size for i in range(1, size + 1)]))
    assert (sde.t_min, sde.T) == (1 / size, 1.0)
    for n in range(1, size):
        t = sde.timesteps(n)
        assert t.shape == (n + 1,)
        assert torch.isin(t, grid).all(), n
        assert (t[0], t[-1]) == (grid[-1], grid[0])
        places = (t * size).round().long()
        # spread evenly: each within half a place, and the rounding of single precision, of where it belongs
        even = torch.linspace(size, 1, n + 1, dtype=torch.float64)
        assert (places - even).abs().max() <= 0.5 + 1e-6 * size, n
        assert (places.diff() < 0).all(), n
    assert torch.equal(sde.timesteps(size - 1), grid.flip(0))
    assert (sde.timesteps(3 * size).diff() < 0).all()  # more than the grid has: some between its times


# ---- times for training


@every_sde
def test_uniform_times_fill_the_range_or_hit_each_time_of_the_grid_equally(sde: SDE) -> None:
    for dtype in (torch.float32, torch.float64):
        if sde.times is None:
            u = torch.tensor([0.0, 0.25, 0.5, 1 - torch.finfo(dtype).eps], dtype=dtype)
            expected = torch.tensor([sde.t_min + (sde.T - sde.t_min) * v for v in u.tolist()], dtype=dtype)
            torch.testing.assert_close(sde.uniform_times(u), expected)
        else:
            size = len(sde.times)
            u = (torch.arange(8 * size, dtype=dtype) + 0.5) / (8 * size)  # eight in each N-th of [0, 1)
            t = sde.uniform_times(u)
            assert torch.isin(t.float(), sde.times).all()
            assert (torch.bincount((t * size).round().long(), minlength=size + 1)[1:] == 8).all()
            assert (t.diff() >= 0).all()
        ends = torch.tensor([0.0, torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))])
        t = sde.uniform_times(ends.to(dtype))
        assert t.dtype == dtype
        sde.check_times(t, 2)  # the largest u below 1 is still within


@every_sde
def test_nearest_times_are_the_nearest(sde: SDE) -> None:
    t = sde.t_min + (sde.T - sde.t_min) * torch.rand(300, dtype=torch.float64, generator=generator())
    nearest = sde.nearest_times(t)
    if sde.times is None:
        assert torch.equal(nearest, t)
        return
    grid = torch.arange(1, len(sde.times) + 1, dtype=torch.float64) / len(sde.times)
    distances = (t[:, None] - grid).abs()
    torch.testing.assert_close((nearest - t).abs(), distances.min(1).values, rtol=0, atol=1e-15)
    torch.testing.assert_close(nearest, grid[distances.argmin(1)], rtol=0, atol=1e-15)
    assert torch.equal(sde.nearest_times(sde.times), sde.times)  # those of the grid stay where they are
    beyond = double(sde.t_min / 10, sde.T + 0.01)  # the nearest is an end
    torch.testing.assert_close(sde.nearest_times(beyond), grid[[0, -1]])


@every_sde
def test_times_are_checked(sde: SDE) -> None:
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([sde.t_min, sde.T], dtype=dtype)
        sde.check_times(ends, 2)
        sde.check_times(sde.timesteps(5), 6)
        middle = ends.mean()
        for shape, t in (((1,), middle.reshape(1)), ((2, 1), ends[:, None]), ((), middle), ((3,), middle.expand(3))):
            with pytest.raises(ValueError, match=rf"t has shape {re.escape(str(shape))}: must be \(2,\)"):
                sde.check_times(t, 2)
        within = re.escape(f"must be in [{sde.t_min:g}, {sde.T:g}]")
        for bad in (0.99 * sde.t_min, -middle.item(), 0.0, 1.01 * sde.T, math.inf, -math.inf, math.nan):
            for t in (torch.tensor([bad, middle], dtype=dtype), torch.tensor([middle, bad], dtype=dtype)):
                # NaN hides the other; else both are named
                named = "t in [nan, nan]" if math.isnan(bad) else f"t in [{t.min():g}, {t.max():g}]"
                with pytest.raises(ValueError, match=re.escape(named) + ": " + within):
                    sde.check_times(t, 2)


def test_times_elsewhere_than_on_a_cpu_are_not_waited_for() -> None:
    VPSDE().check_times(torch.zeros(2, device="meta"), 2)
    with pytest.raises(ValueError, match=r"t has shape \(2,\)"):
        VPSDE().check_times(torch.zeros(2, device="meta"), 3)


def test_timesteps_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for name in ONE_OF_EACH:
            t = SDES[name].timesteps(7)
            assert t.dtype == torch.float64
            assert (t[0].item(), t[-1].item()) == (SDES[name].T, SDES[name].t_min)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- bad arguments


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowerVESDE(1.0), "sigma=1.0"),
        (lambda: PowerVESDE(0.5), "sigma=0.5"),
        (lambda: PowerVESDE(math.nan), "sigma=nan"),
        (lambda: VESDE(0.0, 1.0), "sigma_min=0.0"),
        (lambda: VESDE(-0.1, 1.0), "sigma_min=-0.1"),
        (lambda: VESDE(2.0, 1.0), "sigma_max=1.0"),
        (lambda: VPSDE(0.0, 1.0), "beta_min=0.0"),
        (lambda: VPSDE(2.0, 1.0), "beta_max=1.0"),
        (lambda: SubVPSDE(-1.0, 1.0), "beta_min=-1.0"),
        (lambda: KarrasSDE(0.0, 80.0), "sigma_min=0.0"),
        (lambda: KarrasSDE(1.0, 1.0), "sigma_max=1.0"),
        (lambda: KarrasSDE(rho=0.5), "rho=0.5"),
        (lambda: KarrasSDE(rho=math.nan), "rho=nan"),
        (lambda: VESDE(math.nan, 1.0), "sigma_min=nan"),
        (lambda: VESDE(0.1, math.nan), "sigma_max=nan"),
        (lambda: VPSDE(0.1, math.nan), "beta_max=nan"),
        (lambda: CosineVPSDE(0.0), "s=0.0"),
        (lambda: CosineVPSDE(-0.008), "s=-0.008"),
        (lambda: CosineVPSDE(math.nan), "s=nan"),
        (lambda: DiscreteVPSDE(1), "num_steps=1: must be at least 2"),
        (lambda: DiscreteVPSDE(10, 0.0, 0.1), "beta_start=0.0"),
        (lambda: DiscreteVPSDE(10, 0.2, 0.1), "beta_start=0.2, beta_end=0.1"),
        (lambda: DiscreteVPSDE(10, 0.1, 1.0), "beta_end=1.0"),
        (lambda: DiscreteVPSDE(10, math.nan), "beta_start=nan"),
        (lambda: DiscreteVPSDE(10, 0.1, math.nan), "beta_end=nan"),
        (lambda: DiscreteVPSDE(schedule="sigmoid"), "schedule='sigmoid': must be 'linear' or 'cosine'"),  # type: ignore[arg-type]
        (lambda: DiscreteVESDE(1), "num_scales=1: must be at least 2"),
        (lambda: DiscreteVESDE(10, 0.0, 1.0), "sigma_min=0.0"),
        (lambda: DiscreteVESDE(10, 1.0, 1.0), "sigma_max=1.0"),
        (lambda: DiscreteVESDE(10, math.nan), "sigma_min=nan"),
        (lambda: DiscreteVPSDE().timesteps(0), "steps=0"),
        (lambda: DiscreteVESDE().timesteps(-1), "steps=-1"),
        (lambda: RectifiedFlow().timesteps(0), "steps=0"),
        (lambda: VPSDE().timesteps(0), "steps=0"),
        (lambda: KarrasSDE().timesteps(0), "steps=0"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_abstract_process_is_not_one() -> None:
    with pytest.raises(TypeError):
        SDE()  # type: ignore[abstract]
