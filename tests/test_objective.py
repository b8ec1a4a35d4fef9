"""Denoising score matching: its values by hand, its weights, its times, and that its minimizer is the score."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.objective import (
    MIN_SNR_GAMMA,
    DenoisingScoreMatching,
    LogNormalTimes,
    Times,
    UniformTimes,
    Weighting,
)
from diffusion_lightning.parameterization import KarrasPreconditioning, NoisePrediction, ScorePrediction
from diffusion_lightning.sde import SDE, VESDE, VPSDE, KarrasSDE, PowerVESDE, SubVPSDE, expand

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "karras": KarrasSDE(),
}
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
WEIGHTINGS: tuple[Weighting, ...] = ("simple", "likelihood", "karras", "min_snr")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class FixedTimes(Times):
    """The given times; draws nothing."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __call__(
        self, sde: SDE, n: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.t.expand(n)


class Affine(nn.Module):
    """F(x, c) = 0.3·x + 0.1·c: wrong on purpose."""

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        out = 0.3 * x + 0.1 * expand(time_signal, x)
        return out if labels is None else out + expand(labels, x)


def setting(sde: SDE, shape: tuple[int, ...] = (6, 1, 2, 3)) -> tuple[Tensor, Tensor, Tensor]:
    """x0, the noise that a generator seeded with 7 gives for it, and times in the middle of the range of noise."""
    x0 = torch.randn(shape, dtype=torch.float64, generator=generator(1))
    noise = torch.randn(shape, generator=generator(7)).double()
    t = sde.time_at(torch.tensor([0.02, 0.1, 0.4, 1.0, 3.0, 9.0], dtype=torch.float64))
    return x0, noise, t


# ---- values


@every_sde
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_by_hand(sde: SDE, reduction: Any) -> None:
    x0, noise, t = setting(sde)
    denoiser = NetworkDenoiser(Affine(), sde, NoisePrediction())
    loss = DenoisingScoreMatching("simple", FixedTimes(t), reduction)(denoiser, x0, generator=generator(7))
    assert loss.shape == (6,)
    for i in range(6):
        alpha, sigma = sde.alpha(t[i]), sde.sigma(t[i])
        x = alpha * x0[i] + sigma * noise[i]
        error = (noise[i] - (0.3 * x + 0.1 * t[i])) ** 2  # the network's error in the noise
        expected = error.sum() if reduction == "sum" else error.mean()
        torch.testing.assert_close(loss[i], expected, rtol=1e-6, atol=0)


def test_sum_is_the_mean_times_the_dimensions() -> None:
    x0, _, t = setting(VPSDE())
    denoiser = NetworkDenoiser(Affine(), VPSDE(), ScorePrediction())
    for weighting in WEIGHTINGS:
        total, mean = (
            DenoisingScoreMatching(weighting, FixedTimes(t), reduction)(denoiser, x0, generator=generator(7))
            for reduction in ("sum", "mean")
        )
        torch.testing.assert_close(total, 6 * mean)


@every_sde
def test_each_weighting_is_the_error_that_its_row_of_the_table_names(sde: SDE) -> None:
    x0, noise, t = setting(sde)
    x = sde.perturb(x0, t, noise)

    def loss(denoiser: Denoiser, weighting: Weighting, sigma_data: float = 0.5) -> Tensor:
        objective = DenoisingScoreMatching(weighting, FixedTimes(t), "sum", sigma_data)
        return objective(denoiser, x0, generator=generator(7))

    def squared(error: Tensor) -> Tensor:
        return (error**2).flatten(1).sum(1)

    # simple: the noise's error, and the error of σ·score, whose target is −z
    denoiser = NetworkDenoiser(Affine(), sde, ScorePrediction())
    of_noise = squared(denoiser.noise(x, t) - noise)
    torch.testing.assert_close(loss(denoiser, "simple"), of_noise, rtol=1e-6, atol=0)
    sigma = expand(sde.sigma(t), x)
    torch.testing.assert_close(of_noise, squared(sigma * denoiser.score(x, t) + noise), rtol=1e-6, atol=0)

    # likelihood: g·score, whose target is g·∇ ln p(x_t | x0) = −g·z/σ
    g = expand(sde.diffusion(t), x)
    of_score = squared(g * (denoiser.score(x, t) + noise / sigma))
    torch.testing.assert_close(loss(denoiser, "likelihood"), of_score, rtol=1e-6, atol=0)

    # karras: the output of the network under EDM's preconditioning
    parameterization = KarrasPreconditioning(0.8)
    c = parameterization.coefficients(sde, t)
    output = Affine()(expand(c.input, x) * x, c.noise)
    of_network = squared(output - parameterization.target(sde, x0, x, t))
    preconditioned = NetworkDenoiser(Affine(), sde, parameterization)
    torch.testing.assert_close(loss(preconditioned, "karras", 0.8), of_network, rtol=1e-6, atol=0)

    # min_snr: the noise's error where SNR = α²/σ² is below 5, five times the image's above
    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    of_image = squared(denoiser.denoise(x, t) - x0)
    assert MIN_SNR_GAMMA == 5
    assert (snr < 5).any()
    assert (snr > 5).any()
    torch.testing.assert_close(
        loss(denoiser, "min_snr"), torch.where(snr < 5, of_noise, 5 * of_image), rtol=1e-6, atol=0
    )


@every_sde
def test_an_exact_denoiser_of_a_point_has_no_loss(sde: SDE) -> None:
    point = torch.full((1, 2), 0.3, dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(point, torch.zeros(1, dtype=torch.float64), torch.ones(1), sde)
    loss = DenoisingScoreMatching("simple")(denoiser, point.expand(50, 2), generator=generator())
    assert loss.shape == (50,)
    assert loss.max() < 1e-10


def test_conditions_reach_the_denoiser() -> None:
    x0, _, t = setting(VPSDE())
    denoiser = NetworkDenoiser(Affine(), VPSDE(), NoisePrediction())
    objective = DenoisingScoreMatching(times=FixedTimes(t))
    plain = objective(denoiser, x0, generator=generator(7))
    torch.testing.assert_close(objective(denoiser, x0, generator=generator(7), labels=torch.zeros(6)), plain)
    assert (objective(denoiser, x0, generator=generator(7), labels=torch.ones(6)) - plain).abs().min() > 1e-3


def test_the_noise_is_normal_and_is_the_noise_that_was_added() -> None:
    """The denoiser sees x_t; solving for z gives draws whose first four moments are the normal's."""
    seen: list[Tensor] = []

    class Sees(Denoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            mean, std = self.sde.marginal(x0, t)
            seen.append((x - mean) / std)
            return x0 + seen[-1] * std / expand(self.sde.alpha(t), x)  # so that the loss "simple" is ‖z‖²

    x0 = torch.randn(2000, 4, dtype=torch.float64, generator=generator(1))
    loss = DenoisingScoreMatching("simple")(Sees(PowerVESDE()), x0, generator=generator())
    z, n = seen[0], 8000
    assert abs(z.mean().item()) < 5 / n**0.5
    assert abs((z**2).mean().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean().item()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    torch.testing.assert_close(loss, (z**2).sum(1), rtol=1e-3, atol=0)


# ---- times


def kolmogorov_smirnov(u: Tensor) -> float:
    """The largest distance between the empirical distribution of ``u`` and the uniform on [0, 1]."""
    u, n = u.double().sort().values, len(u)
    i = torch.arange(n, dtype=torch.float64)
    return max((u - i / n).max().item(), ((i + 1) / n - u).max().item())


def unit(sde: SDE, t: Tensor) -> Tensor:
    return (t.double() - sde.t_min) / (sde.T - sde.t_min)


@every_sde
def test_stratified_times_fall_one_into_each_stratum(sde: SDE) -> None:
    for n in (1, 7, 64):
        t = UniformTimes()(sde, n, generator=generator(3))
        assert t.shape == (n,)
        assert sorted((unit(sde, t) * n).floor().tolist()) == list(range(n))
    # within their strata they are uniform; 1.95/√n is passed by chance once in a thousand
    draws = torch.cat([UniformTimes()(sde, 50, generator=generator(seed)) for seed in range(40)])
    assert kolmogorov_smirnov((unit(sde, draws) * 50).frac()) < 1.95 / 2000**0.5
    assert kolmogorov_smirnov(unit(sde, draws)) < 1 / 50  # far more even than chance
    # and each example alone gets any time: the strata are dealt out at random
    first = torch.stack([UniformTimes()(sde, 50, generator=generator(seed))[0] for seed in range(400)])
    assert kolmogorov_smirnov(unit(sde, first)) < 1.95 / 400**0.5


@every_sde
def test_independent_times_are_uniform_but_not_even(sde: SDE) -> None:
    t = UniformTimes(stratified=False)(sde, 5000, generator=generator(3))
    assert kolmogorov_smirnov(unit(sde, t)) < 1.95 / 5000**0.5
    assert len((unit(sde, t) * 5000).floor().unique()) < 4000  # about 63 % of the strata are hit
    assert t.min() >= torch.tensor(sde.t_min)
    assert t.max() <= sde.T


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-0.5, 0.7)])
@pytest.mark.parametrize("sde", [KarrasSDE(1e-5, 1e4), SubVPSDE(), VPSDE()], ids=["karras", "subvp", "vp"])
def test_log_normal_times_have_a_log_normal_noise_level(sde: SDE, mean: float, std: float, stratified: bool) -> None:
    n = 20_000
    t = LogNormalTimes(mean, std, stratified)(sde, n, generator=generator(3))
    log_level = sde.noise_level(t.double()).log()
    if not isinstance(sde, KarrasSDE):  # of the others, the ends are cut off: compare the quantiles in between
        quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        normal = torch.distributions.Normal(mean, std).icdf(quantiles)
        torch.testing.assert_close(log_level.quantile(quantiles), normal, rtol=0, atol=5 * std * 2.2 / n**0.5)
        return
    assert abs(log_level.mean().item() - mean) < 5 * std / n**0.5
    assert abs(log_level.std().item() - std) < 5 * std / (2 * n) ** 0.5
    if stratified:
        assert abs(log_level.mean().item() - mean) < 1e-3 * std


@every_sde
def test_log_normal_times_stay_in_range(sde: SDE) -> None:
    assert (LogNormalTimes(mean=40.0)(sde, 50, generator=generator()) == sde.T).all()
    assert (LogNormalTimes(mean=-40.0)(sde, 50, generator=generator()) == torch.tensor(sde.t_min)).all()
    wide = LogNormalTimes(mean=0.0, std=8.0)(sde, 500, generator=generator())
    assert wide.isfinite().all()
    assert (wide == torch.tensor(sde.t_min)).any()
    assert (wide == sde.T).any()


@pytest.mark.parametrize("times", [UniformTimes(), UniformTimes(False), LogNormalTimes(), LogNormalTimes(std=0.5)])
def test_a_generator_decides_alone(times: Times) -> None:
    sde = VPSDE()
    denoiser = NetworkDenoiser(Affine(), sde, NoisePrediction())
    x0 = torch.randn(8, 3, generator=generator(1))
    objective = DenoisingScoreMatching(times=times)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    t, loss = times(sde, 8, generator=generator(5)), objective(denoiser, x0, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(times(sde, 8, generator=generator(5)), t)
    assert torch.equal(objective(denoiser, x0, generator=generator(5)), loss)
    assert not torch.equal(objective(denoiser, x0, generator=generator(6)), loss)

    # without one, the global generator does
    torch.manual_seed(3)
    first, second = objective(denoiser, x0), objective(denoiser, x0)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(objective(denoiser, x0), first)


# ---- the minimizer


@every_sde
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_best_linear_denoiser_of_gaussian_data_is_the_posterior_mean(sde: SDE, weighting: Weighting) -> None:
    """D = k·x at one time: the loss is a parabola in k, whose lowest point is ασ_d²/(α²σ_d² + σ²) up to chance."""

    class Linear(Denoiser):
        gain = 0.0

        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.gain * x

    n, std = 40_000, 0.7
    x0 = std * torch.randn(n, 1, dtype=torch.float64, generator=generator(1))
    denoiser = Linear(sde)
    for level in (0.2, 1.0, 4.0):
        t = sde.time_at(torch.tensor([level], dtype=torch.float64))
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        objective = DenoisingScoreMatching(weighting, FixedTimes(t))
        losses = []
        for gain in (0.0, 1.0, 2.0):
            denoiser.gain = gain
            losses.append(objective(denoiser, x0, generator=generator(2)).mean().item())
        curvature = losses[0] - 2 * losses[1] + losses[2]
        best = 1 - (losses[2] - losses[0]) / 2 / curvature
        variance = alpha**2 * std**2 + sigma**2
        standard_error = std * sigma / variance / n**0.5  # the posterior's std over the root of Σx²
        assert abs(best - alpha * std**2 / variance) < 5 * standard_error


class TimeConditionedMLP(nn.Module):
    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
        t = time_signal[:, None]
        waves = torch.cat([t, torch.sin(3 * t), torch.cos(3 * t), torch.log(t + 0.02)], 1)
        return self.layers(torch.cat([x, waves], 1))


@pytest.mark.parametrize(
    ("sde", "parameterization"),
    [(VPSDE(), NoisePrediction()), (SubVPSDE(), ScorePrediction())],
    ids=["vp, noise", "subvp, score"],
)
def test_training_finds_the_score(sde: SDE, parameterization: Any) -> None:
    """A small network, a few seconds: the learned σ·score approaches the mixture's exact one over p_t and all t.

    The error is relative to the exact score's own size, so that a score of zero, which is what one learns when the
    target is some other noise than that in x_t, has an error of 1.
    """
    exact = GaussianMixtureDenoiser(
        torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]]),
        torch.tensor([0.3, 0.4, 0.3]),
        torch.tensor([0.5, 0.3, 0.2]),
        sde,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(TimeConditionedMLP(), sde, parameterization)
    draws = generator(1)

    x0 = exact.sample_data(4000, draws)
    t = 0.02 + 0.98 * torch.rand(4000, generator=draws)
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=draws))
    expected = exact.noise(x, t)

    def relative_error() -> float:
        with torch.no_grad():
            error = denoiser.noise(x, t) - expected
        return ((error**2).sum() / (expected**2).sum()).sqrt().item()

    assert relative_error() > 0.7  # untrained
    steps = 900
    objective = DenoisingScoreMatching("simple")
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(denoiser, exact.sample_data(512, draws), generator=draws).mean().backward()
        optimizer.step()
        schedule.step()
    assert relative_error() < 0.25


# ---- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weighting": "best"}, "weighting='best'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"sigma_data": math.nan}, "sigma_data=nan"),
        ({"sigma_data": math.inf}, "sigma_data=inf"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingScoreMatching(**arguments)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_log_normal_std_must_be_positive(std: float) -> None:
    with pytest.raises(ValueError, match=f"std={std}"):
        LogNormalTimes(std=std)
    with pytest.raises(ValueError, match="mean=nan"):
        LogNormalTimes(mean=math.nan)
