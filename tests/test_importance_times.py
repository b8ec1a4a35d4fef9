"""Drawing times by importance: the density, the expected loss by quadrature, its variance; and times on grids."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_lightning.denoiser import GaussianMixtureDenoiser
from diffusion_lightning.objective import (
    DenoisingScoreMatching,
    ImportanceTimes,
    LogNormalTimes,
    Times,
    UniformTimes,
)
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
    "ddpm, cosine": DiscreteVPSDE(400, schedule="cosine"),
    "ncsn": DiscreteVESDE(200, 0.01, 50.0),
}
GEOMETRIC = {"ve", "ncsn"}
"""ln σ is linear there: the importance is the same at all times."""
GRIDS = {name: sde for name, sde in SDES.items() if sde.times is not None}
every_sde = pytest.mark.parametrize("name", SDES)
every_grid = pytest.mark.parametrize("name", GRIDS)

DIMENSION = 4
MEAN, STD = 0.4, 0.5
"""Of the data, in each dimension."""
WRONG_MEAN, WRONG_STD = 0.0, 0.8
"""Of the data that the denoiser is exact for."""
DRAWS = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def importance(sde: SDE, t: Tensor) -> Tensor:
    """g²/σ² in double."""
    return (sde.diffusion(t.double()) / sde.sigma(t.double())) ** 2


def nodes(sde: SDE) -> tuple[Tensor, Tensor]:
    """Times and the weights, summing to 1, of an average over them: the grid's own, or a fine trapezoid in ln(t).

    On a continuous process its 200,000 intervals are of ln(t) in the lower half and of ln(T + ε − t) in the upper one,
    where RectifiedFlow and CosineVPSDE have their own singularity just behind T.
    """
    if sde.times is not None:
        n = len(sde.times)
        return sde.times.double(), torch.full((n,), 1 / n, dtype=torch.float64)
    middle, margin = (sde.t_min + sde.T) / 2, 1e-3 * sde.T
    low = torch.linspace(math.log(sde.t_min), math.log(middle), 100_001, dtype=torch.float64).exp()
    high = torch.linspace(math.log(margin), math.log(sde.T - middle + margin), 100_001, dtype=torch.float64).exp()
    t = torch.cat([low, (sde.T + margin - high).flip(0)[1:]]).clamp(sde.t_min, sde.T)
    gaps = t.diff()
    weights = torch.zeros_like(t)
    weights[1:] += gaps / 2
    weights[:-1] += gaps / 2
    return t, weights / weights.sum()


def moments(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """E and E of the square of the weighted loss at the times t, of N(MEAN, STD²) under the wrong denoiser.

    That is D = m' + k(x − αm'), k = αs'²/(α²s'² + σ²), so D − x0 = (1 − kα)(m' − x0) + kσz is N(b, v) in each
    dimension, b = (1 − kα)(m' − m), v = (1 − kα)²s² + k²σ²; the loss is λ times a sum of d squares.
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    k = alpha * WRONG_STD**2 / ((alpha * WRONG_STD) ** 2 + sigma**2)
    bias, variance = (1 - k * alpha) * (WRONG_MEAN - MEAN), ((1 - k * alpha) * STD) ** 2 + (k * sigma) ** 2
    weight = importance(sde, t) * (alpha / sigma) ** 2
    first = DIMENSION * (bias**2 + variance)
    second = first**2 + DIMENSION * (2 * variance**2 + 4 * variance * bias**2)
    return weight * first, weight**2 * second


def losses(sde: SDE, times: Times, n: int = DRAWS, seed: int = 0) -> Tensor:
    denoiser = GaussianMixtureDenoiser(
        torch.full((1, DIMENSION), WRONG_MEAN), torch.tensor([WRONG_STD]), torch.ones(1), sde
    )
    x0 = MEAN + STD * torch.randn(n, DIMENSION, generator=generator(seed + 1))
    # in single precision, as in training
    return DenoisingScoreMatching("likelihood", times)(denoiser, x0, generator=generator(seed)).double()


def kolmogorov_smirnov(u: Tensor) -> float:
    """The largest distance between the empirical distribution of ``u`` and the uniform on [0, 1]."""
    u, n = u.double().sort().values, len(u)
    i = torch.arange(n, dtype=torch.float64)
    return max((u - i / n).max().item(), ((i + 1) / n - u).max().item())


# ---- the expected loss and its variance


@every_sde
def test_the_expected_loss_is_that_of_uniform_times_and_its_variance_at_most_half(name: str) -> None:
    """Both against quadrature over t of the loss's own closed-form moments."""
    sde = SDES[name]
    t, weights = nodes(sde)
    first, second = moments(sde, t)
    expected = (weights * first).sum().item()
    correction = (weights * importance(sde, t)).sum() / importance(sde, t)  # the uniform density over p
    uniform = (weights * second).sum().item() - expected**2
    drawn = (weights * second * correction).sum().item() - expected**2  # E_p[(c·loss)²] = E_uniform[c·loss²]
    assert drawn > 0
    if name in GEOMETRIC:
        assert drawn == pytest.approx(uniform, rel=1e-6)  # nothing to gain
    else:
        assert drawn <= uniform / 2

    by_importance = losses(sde, ImportanceTimes(stratified=False))
    by_uniform = losses(sde, UniformTimes(stratified=False))
    # the quadrature is exact to 1e-5, single precision to 1e-4
    assert abs(by_importance.mean() - expected) < 4 * math.sqrt(drawn / DRAWS) + 2e-4 * expected
    assert abs(by_uniform.mean() - expected) < 4 * math.sqrt(uniform / DRAWS) + 2e-4 * expected
    # measured, it is the variance of the closed form. The loss of one time has a chi-square's tails: 10 % is ample
    assert by_importance.var().item() == pytest.approx(drawn, rel=0.1)
    if name not in GEOMETRIC:
        assert by_importance.var() <= by_uniform.var() / 2


@every_sde
def test_stratified_importance_times_have_the_same_expectation_and_no_larger_an_error(name: str) -> None:
    """Strata take out what varies with t: the mean is within 4 of the standard errors of independent draws."""
    sde = SDES[name]
    t, weights = nodes(sde)
    first, second = moments(sde, t)
    expected = (weights * first).sum().item()
    correction = (weights * importance(sde, t)).sum() / importance(sde, t)
    # within a stratum t is nearly fixed: what is left of the variance is that of the loss at one time
    left = (weights * correction * (second - first**2)).sum().item()
    mean = losses(sde, ImportanceTimes()).mean().item()
    assert abs(mean - expected) < 4 * math.sqrt(left / DRAWS) + 2e-4 * expected


@every_grid
def test_on_a_grid_the_correction_makes_the_two_sums_equal(name: str) -> None:
    """Σ p_i c_i ℓ_i = Σ ℓ_i/N for any ℓ: p_i c_i = 1/N, with p_i ∝ g²/σ² on the grid."""
    sde = GRIDS[name]
    assert sde.times is not None
    times = sde.times.double()
    density = importance(sde, times) / importance(sde, times).sum()
    correction = ImportanceTimes().correction(sde, times)
    torch.testing.assert_close(density * correction, torch.full_like(density, 1 / len(times)))


@every_sde
def test_the_correction_has_the_mean_one(name: str) -> None:
    """∫ p c dt = ∫ du = 1, p the density of importance by quadrature; so it is the ratio of two densities."""
    sde = SDES[name]
    t, weights = nodes(sde)
    correction = ImportanceTimes().correction(sde, t)
    density = importance(sde, t) / (weights * importance(sde, t)).sum()  # over the uniform one
    torch.testing.assert_close(correction * density, torch.ones_like(t), rtol=1e-5, atol=0)
    single = ImportanceTimes().correction(sde, t.float())
    assert single.dtype == torch.float32
    # RectifiedFlow's 1/(1 − t) has 1,000 times the rounding of t at T
    torch.testing.assert_close(single.double(), correction, rtol=2e-4, atol=0)


# ---- the density


@every_sde
@pytest.mark.parametrize("stratified", [True, False])
def test_times_are_drawn_in_proportion_to_g_squared_over_sigma_squared(name: str, stratified: bool) -> None:
    """By Kolmogorov and Smirnov's test against the integral of g²/σ²; 1.95/√n is passed by chance once in a thousand.

    On a grid the distribution is a staircase, so the largest distance is that at its steps; chance is no larger.
    """
    sde, n = SDES[name], 20_000
    drawn = ImportanceTimes(stratified)(sde, n, generator=generator(3))
    assert drawn.shape == (n,)
    assert drawn.min() >= torch.tensor(sde.t_min)
    assert drawn.max() <= torch.tensor(sde.T)
    t, _ = nodes(sde)
    if sde.times is not None:
        expected = (importance(sde, t) / importance(sde, t).sum()).cumsum(0)
        observed = torch.bincount(grid_index(sde, drawn), minlength=len(t)).cumsum(0) / n
        distance = (observed - expected).abs().max().item()
    else:
        rate = importance(sde, t)
        area = torch.cat([t.new_zeros(1), ((rate[1:] + rate[:-1]) / 2 * t.diff()).cumsum(0)])
        right = torch.searchsorted(t, drawn.double()).clamp(1, len(t) - 1)
        share = (drawn.double() - t[right - 1]) / (t[right] - t[right - 1])
        u = (area[right - 1] + share * (area[right] - area[right - 1])) / area[-1]
        distance = kolmogorov_smirnov(u)
    assert distance < (2.5 / n if stratified and sde.times is not None else 1.95 / n**0.5)
    if stratified and sde.times is None:
        assert distance < 0.1 / n**0.5  # far more even than chance
    elif not stratified:
        assert distance > 0.2 / n**0.5


# ---- grids


def grid_index(sde: SDE, t: Tensor) -> Tensor:
    """Which times of the grid these are, exactly."""
    assert sde.times is not None
    grid = sde.times.to(t)
    index = torch.searchsorted(grid, t).clamp(max=len(grid) - 1)
    assert torch.equal(grid[index], t)
    return index


EVERY_TIMES: dict[str, Times] = {
    "uniform": UniformTimes(),
    "uniform, independent": UniformTimes(stratified=False),
    "log-normal": LogNormalTimes(),
    "log-normal, independent": LogNormalTimes(0.0, 2.0, stratified=False),
    "importance": ImportanceTimes(),
    "importance, independent": ImportanceTimes(stratified=False),
}
every_times = pytest.mark.parametrize("times", EVERY_TIMES.values(), ids=EVERY_TIMES.keys())
ODD_GRIDS: dict[str, SDE] = {"3": DiscreteVPSDE(3, 0.1, 0.3), "7": DiscreteVESDE(7), "1000": DiscreteVPSDE()}


@every_times
@pytest.mark.parametrize("name", ODD_GRIDS)
def test_only_times_of_the_grid_are_drawn(name: str, times: Times) -> None:
    sde = ODD_GRIDS[name]
    assert sde.times is not None
    for n in (1, 10, 5000):
        drawn = times(sde, n, generator=generator(n))
        assert drawn.shape == (n,)
        assert set(grid_index(sde, drawn).tolist()) <= set(range(len(sde.times)))
        sde.check_times(drawn, n)


@pytest.mark.parametrize("size", [3, 7, 10, 250, 1000])
@pytest.mark.parametrize("multiple", [1, 3])
def test_stratified_uniform_times_take_each_time_of_the_grid_equally_often(size: int, multiple: int) -> None:
    """But for the rounding of float32 where two strata meet, which now and then moves one draw to the next time."""
    sde = DiscreteVESDE(size)
    for seed in range(60):
        drawn = UniformTimes()(sde, size * multiple, generator=generator(seed))
        deviation = torch.bincount(grid_index(sde, drawn), minlength=size) - multiple
        assert deviation.abs().sum() <= 2, seed


def test_independent_uniform_times_take_each_time_of_the_grid_as_often_as_chance_has_it() -> None:
    """Counts are binomial: 4.5 standard errors for the largest of 100; their spread is a chi-square's."""
    n, size = 50_000, 100
    drawn = UniformTimes(stratified=False)(DiscreteVESDE(size), n, generator=generator(1))
    deviations = (torch.bincount(grid_index(DiscreteVESDE(size), drawn), minlength=size) - n / size) / math.sqrt(
        n / size * (1 - 1 / size)
    )
    assert deviations.abs().max() < 4.5
    assert abs((deviations**2).sum().item() - size) < 4 * math.sqrt(2 * size)


def test_log_normal_times_on_a_grid_are_the_nearest_ones() -> None:
    """Within half a step of the grid of the times of a process without rounding, drawn from the same seed."""
    sde = DiscreteVPSDE()

    class Unrounded(DiscreteVPSDE):
        def nearest_times(self, t: Tensor) -> Tensor:
            return t

    rounded, exact = (LogNormalTimes()(process, 2000, generator=generator(2)) for process in (sde, Unrounded()))
    inside = exact > sde.t_min
    assert inside.sum() > 1900
    assert (rounded - exact)[inside].abs().max() <= 0.5e-3 + 1e-6
    assert (rounded - exact).abs().max() > 0.4e-3


# ---- the correction of the others, and randomness


@pytest.mark.parametrize("times", [UniformTimes(), LogNormalTimes(), UniformTimes(False)])
@every_sde
def test_no_other_times_correct_the_loss(name: str, times: Times) -> None:
    sde = SDES[name]
    t = times(sde, 50, generator=generator())
    assert torch.equal(times.correction(sde, t), torch.ones(50))


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_where_ln_sigma_is_linear_importance_is_uniform(name: str) -> None:
    sde = SDES[name]
    uniform, drawn = (times(sde, 1000, generator=generator(4)) for times in (UniformTimes(), ImportanceTimes()))
    torch.testing.assert_close(drawn, uniform, rtol=0, atol=1e-5 if sde.times is None else 1.01 / 200)
    torch.testing.assert_close(ImportanceTimes().correction(sde, drawn), torch.ones(1000), rtol=1e-5, atol=0)


@every_times
@pytest.mark.parametrize("name", ["vp", "ddpm"])
def test_a_generator_decides_alone(name: str, times: Times) -> None:
    sde = SDES[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = times(sde, 8, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(times(sde, 8, generator=generator(5)), drawn)
    assert not torch.equal(times(sde, 8, generator=generator(6)), drawn)
    assert not torch.equal(times(sde, 8), times(sde, 8))
