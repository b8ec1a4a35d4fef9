"""The exact law of every discrete algorithm on Gaussian data, where the score is linear.

A step that is linear in x keeps a Gaussian N(m, q·I) Gaussian, so the law of the samples after any number of steps,
few included, follows from the papers' formulas by a recursion on m and q. It is written out here once more, on
numbers, and what the samplers draw must agree with it up to chance: no allowance for a discretization error is needed.
With few steps the noise of each is large, so that one left in, left out or wrongly scaled shows.
"""

import functools
import itertools
import math

import pytest
import torch
from exact_models import CORRECTORS, PAIRS, PREDICTORS, SDES, gaussian, generator, mixture, prior_std
from torch import Tensor

from diffusion_lightning.denoiser import GaussianMixtureDenoiser
from diffusion_lightning.samplers import (
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseDiffusionPredictor,
)
from diffusion_lightning.sde import SDE, KarrasSDE

MEAN, STD = (1.5, -0.7), 0.6
N = 10_000
every_sde = pytest.mark.parametrize("name", SDES)


def denoiser(sde: SDE, dtype: torch.dtype = torch.float32) -> GaussianMixtureDenoiser:
    return gaussian(sde, torch.tensor(MEAN, dtype=dtype), STD)


class Process:
    """The functions of an SDE, and the variance v of p_t, at one time, as numbers."""

    def __init__(self, sde: SDE, t: Tensor) -> None:
        t = t.double().reshape(1)
        self.alpha, self.sigma = sde.alpha(t).item(), sde.sigma(t).item()
        self.f, self.g = sde.drift_rate(t).item(), sde.diffusion(t).item()
        self.t, self.v = t.item(), self.alpha**2 * STD**2 + self.sigma**2

    def score(self, m: Tensor) -> Tensor:
        """∇ ln p_t at m."""
        return -(m - self.alpha * torch.tensor(MEAN, dtype=torch.float64)) / self.v


State = tuple[Tensor, float]  # mean m (2,), and variance q


def predict(kind: str, state: State, t: Process, s: Process, noise: bool) -> State:
    """One predictor step from t to s: x ← a·x + b·score + c·z, with the score −(x − αμ)/v."""
    m, q = state
    ratio = t.alpha / s.alpha
    variance = t.sigma**2 - ratio**2 * s.sigma**2  # σ²_{t|s}
    if kind == "euler":
        a, b, c = 1 - t.f * (t.t - s.t), t.g**2 * (t.t - s.t), t.g * math.sqrt(t.t - s.t)
    elif kind == "reverse":
        a, b, c = 2 - ratio, variance, math.sqrt(variance)
    else:
        a, b, c = 1 / ratio, variance / ratio, math.sqrt(variance) * s.sigma / t.sigma
    return a * m + b * t.score(m), (a - b / t.v) ** 2 * q + (c**2 if noise else 0)


def norm_of_gaussian(m: Tensor, q: float) -> float:
    """E‖x‖ of x ~ N(m, q·I) in two dimensions: the mean of Rice's distribution."""
    y = (m @ m) / (2 * q)
    return math.sqrt(math.pi * q / 2) * ((1 + y) * torch.special.i0e(y / 2) + y * torch.special.i1e(y / 2)).item()


def correct(kind: str, state: State, t: Process, snr: float, noise: bool) -> State:
    """One Langevin step at t: x ← x + ε·score + √(2ε)·z."""
    m, q = state
    if kind == "langevin":
        step = 2 * (snr * math.sqrt(2) / norm_of_gaussian(t.score(m), q / t.v**2)) ** 2
    else:
        step = 2 * (snr * t.sigma) ** 2
    return m + step * t.score(m), (1 - step / t.v) ** 2 * q + (2 * step if noise else 0)


def start(sde: SDE) -> State:
    return torch.zeros(2, dtype=torch.float64), prior_std(sde) ** 2


def check(x: Tensor, state: State, slack: float = 0.0) -> None:
    """Mean and variance within five standard errors; ``slack`` for what else is random in a step, relative."""
    m, q = state
    n, std = len(x), math.sqrt(q)
    covariance = x.double().T.cov()
    assert ((x.double().mean(0) - m).abs() < (5 / math.sqrt(n) + slack) * std).all()
    assert ((covariance.diag() / q - 1).abs() < 5 * math.sqrt(2 / n) + slack).all()
    assert abs(covariance[0, 1] / q) < 5 / math.sqrt(n) + slack


@every_sde
@pytest.mark.parametrize("steps", [2, 5, 30])
def test_euler_maruyama(name: str, steps: int) -> None:
    sde = SDES[name]
    grid = [Process(sde, t) for t in sde.timesteps(steps)]
    state = start(sde)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        state = predict("euler", state, t, s, noise=i < steps - 1)
    check(EulerMaruyama(steps)(denoiser(sde), (N, 2), generator=generator(1)), state)


@every_sde
@pytest.mark.parametrize("steps", [2, 12])
@pytest.mark.parametrize(("predictor", "corrector"), PAIRS)
def test_predictor_corrector(name: str, predictor: str, corrector: str, steps: int) -> None:
    sde, snr, per_time = SDES[name], 0.25, 2
    grid = [Process(sde, t) for t in sde.timesteps(steps)]
    state = start(sde)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        last = i == steps - 1
        if corrector != "none":
            for k in range(per_time):
                # alone, the corrector's last step is the sampler's, and returns its mean
                noise = not (predictor == "none" and last and k == per_time - 1)
                state = correct(corrector, state, t, snr, noise)
        if predictor != "none":
            state = predict(predictor, state, t, s, noise=not last)
    sampler = PredictorCorrector(steps, PREDICTORS[predictor], CORRECTORS[corrector], snr, per_time)
    x = sampler(denoiser(sde), (N, 2), generator=generator(1))
    check(x, state, slack=0.01 if corrector == "langevin" else 0)  # the step is measured on the batch, as in the paper


def heun_by_hand(sde: SDE, state: State, steps: int, rho: float, churn: float, noise: float, low: float) -> State:
    """Algorithm 2 of Karras et al. 2022 on x̃ = x/α and σ̃ = σ/α; no noise is added above that of the prior."""
    m, q = state
    first, last = Process(sde, torch.tensor(sde.T)), Process(sde, torch.tensor(sde.t_min))
    high, small = first.sigma / first.alpha, last.sigma / last.alpha
    levels = [
        (high ** (1 / rho) + i / (steps - 1) * (small ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(steps)
    ]
    levels.append(0.0)
    mean = torch.tensor(MEAN, dtype=torch.float64)
    m, q = m / first.alpha, q / first.alpha**2
    gamma = min(churn / steps, math.sqrt(2) - 1)
    for i in range(steps):
        level, following = levels[i], levels[i + 1]
        if gamma > 0 and level >= low and level * (1 + gamma) <= high:
            q += noise**2 * ((level * (1 + gamma)) ** 2 - level**2)
            level *= 1 + gamma

        def slope(level: float) -> float:  # d(x̃ − μ)/dσ̃ = (x̃ − D)/σ̃ per x̃ − μ
            return level / (STD**2 + level**2)

        factor = 1 + (following - level) * slope(level)
        if following > 0:
            factor = 1 + (following - level) * (slope(level) + slope(following) * factor) / 2
        m, q = mean + factor * (m - mean), factor**2 * q
    return m, q


@every_sde
@pytest.mark.parametrize(
    ("steps", "rho", "churn", "noise", "low"),
    [(2, 7, 0, 1, 0), (18, 7, 0, 1, 0), (18, 3, 0, 1, 0), (18, 7, 9, 1, 0), (12, 5, 100, 1.1, 0), (18, 7, 9, 1, 0.3)],
)
def test_heun(name: str, steps: int, rho: float, churn: float, noise: float, low: float) -> None:
    sde = SDES[name]
    sampler = Heun(steps, rho, churn, churn_min=low, churn_noise=noise)
    x = sampler(denoiser(sde), (N, 2), generator=generator(1))
    check(x, heun_by_hand(sde, start(sde), steps, rho, churn, noise, low))


@every_sde
@pytest.mark.parametrize(("steps", "rho"), [(1, 7), (2, 7), (18, 7), (18, 3)])
def test_heun_without_churn_point_by_point(name: str, steps: int, rho: float) -> None:
    """The same recursion on single points: the mean of a law without variance."""
    sde = SDES[name]
    x_T = prior_std(sde) * torch.randn(5, 2, dtype=torch.float64, generator=generator())
    x = Heun(steps, rho)(denoiser(sde, torch.float64), (5, 2), x_T=x_T)
    for i in range(5):
        if steps == 1:
            top = Process(sde, torch.tensor(sde.T))
            expected = (x_T[i] + top.sigma**2 * top.score(x_T[i])) / top.alpha  # D, by Tweedie's formula
        else:
            expected, _ = heun_by_hand(sde, (x_T[i], 0.0), steps, rho, churn=0, noise=1, low=0)
        torch.testing.assert_close(x[i], expected, rtol=1e-4, atol=1e-4)


def flow(sde: SDE, x_T: Tensor, t: float, denoised: bool) -> Tensor:
    """The probability flow in closed form: (x − αμ)/√v does not change along it."""
    top, end = Process(sde, torch.tensor(sde.T)), Process(sde, torch.tensor(t))
    mean = torch.tensor(MEAN, dtype=torch.float64)
    x = end.alpha * mean + math.sqrt(end.v / top.v) * (x_T - top.alpha * mean)
    return (x + end.sigma**2 * end.score(x)) / end.alpha if denoised else x


METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "rk4")


@every_sde
@pytest.mark.parametrize("method", METHODS)
def test_probability_flow_point_by_point(name: str, method: str) -> None:
    sde = SDES[name]
    # by turns to the end and denoised, or to a time before it
    t_min, denoised = ((None, True), (0.05, False))[(list(SDES).index(name) + METHODS.index(method)) % 2]
    tolerance = {"fehlberg2": 1e-6, "adaptive_heun": 1e-4}.get(method, 1e-7)
    x_T = prior_std(sde) * torch.randn(5, 2, dtype=torch.float64, generator=generator())
    sampler = ProbabilityFlowODE(method, tolerance, tolerance, steps=200, denoise=denoised, t_min=t_min)  # type: ignore[arg-type]
    x = sampler(denoiser(sde, torch.float64), (5, 2), x_T=x_T)
    expected = flow(sde, x_T, t_min or sde.t_min, denoised)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5 if tolerance == 1e-7 else 3e-3)


@every_sde
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams"])
def test_fixed_step_methods_follow_the_flow(name: str, method: str) -> None:
    sde = SDES[name]
    x_T = prior_std(sde) * torch.randn(5, 2, dtype=torch.float64, generator=generator())
    x = ProbabilityFlowODE(method, steps=400)(denoiser(sde, torch.float64), (5, 2), x_T=x_T)  # type: ignore[arg-type]
    # Adams' methods assume equal steps; on the unequal ones of EDM's grid they are of second order
    atol = {"euler": 0.1, "midpoint": 1e-3, "heun2": 1e-3}.get(method, 2e-4)
    torch.testing.assert_close(x, flow(sde, x_T, sde.t_min, True), rtol=0, atol=atol)


# ---- the order of the deterministic methods


def order(error_of: dict[int, float]) -> float:
    (coarse, error), (fine, smaller) = sorted(error_of.items())
    return math.log(error / smaller) / math.log(fine / coarse)


@functools.cache
def smooth_flow(name: str) -> tuple[GaussianMixtureDenoiser, Tensor, Tensor]:
    """A mixture of wide components, 16 points of the prior, and where the flow takes them."""
    sde = SDES[name]
    exact = mixture(sde, scale=6, dtype=torch.float64)
    x_T = prior_std(sde) * torch.randn(16, 2, dtype=torch.float64, generator=generator())
    return exact, x_T, ProbabilityFlowODE("dopri8", 1e-10, 1e-11)(exact, (16, 2), x_T=x_T)


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@every_sde
@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [("euler", 200, 1), ("midpoint", 100, 2), ("heun2", 100, 2), ("heun3", 80, 3), ("rk4", 80, 4)],
)
def test_fixed_step_methods_have_their_order(name: str, method: str, steps: int, expected: int) -> None:
    """Halving the step divides the error by 2 to the order, on the flow of a mixture in double precision."""
    exact, x_T, reference = smooth_flow(name)
    errors = {
        n: distance(ProbabilityFlowODE(method, steps=n)(exact, (16, 2), x_T=x_T), reference)  # type: ignore[arg-type]
        for n in (steps, 2 * steps)
    }
    assert order(errors) == pytest.approx(expected, abs=0.3)


@every_sde
def test_heun_is_of_second_order(name: str) -> None:
    exact, x_T, _ = smooth_flow(name)
    reference = Heun(481)(exact, (16, 2), x_T=x_T)
    # the last step, from t_min to noise level 0, is the same one for all
    errors = {n: distance(Heun(n + 1)(exact, (16, 2), x_T=x_T), reference) for n in (40, 80)}
    assert order(errors) == pytest.approx(2, abs=0.3)


@every_sde
def test_heun_and_the_ode_solver_agree(name: str) -> None:
    """Two roads from the same noise, in different variables, to the same samples."""
    exact, x_T, reference = smooth_flow(name)
    assert distance(Heun(161)(exact, (16, 2), x_T=x_T), reference) < 2e-3


# ---- single steps of the predictors against the exact reverse transition


@every_sde
@pytest.mark.parametrize("predictor", ["euler", "reverse", "ancestral"])
def test_a_short_step_is_the_reverse_sde(name: str, predictor: str) -> None:
    """(mean − x)/Δt → −(f x − g² score) and std²/Δt → g², for any data: the definition of the reverse process."""
    sde = SDES[name]
    exact = mixture(sde, scale=3, dtype=torch.float64)
    for level in (0.3, 1.0, 5.0):
        t = sde.time_at(torch.tensor([level], dtype=torch.float64)).expand(8)
        dt = 1e-6 * t
        x = sde.alpha(t)[:, None] * torch.randn(8, 2, dtype=torch.float64, generator=generator())
        used = PREDICTORS[predictor]
        assert used is not None
        mean, std = used(exact, x, t, t - dt)
        f, g = sde.drift_rate(t)[:, None], sde.diffusion(t)[:, None]
        drift = -(f * x - g**2 * exact.score(x, t))
        torch.testing.assert_close((mean - x) / dt[:, None], drift, rtol=1e-3, atol=1e-3 * drift.abs().max().item())
        torch.testing.assert_close((std**2 / dt[:, None]).expand(8, 1), g**2, rtol=1e-3, atol=0)


@every_sde
def test_ancestral_steps_are_exact_for_a_point(name: str) -> None:
    """The posterior q(x_s | x_t, x0) carries p_t to p_s exactly when x0 is known, however long the step."""
    sde = SDES[name]
    point = gaussian(sde, torch.tensor(MEAN, dtype=torch.float64), 0.0)
    predictor = PREDICTORS["ancestral"]
    assert predictor is not None
    for high, low in ((sde.T, 0.4 * sde.T), (0.6 * sde.T, sde.t_min), (sde.T, sde.t_min)):
        t, s = torch.tensor([high], dtype=torch.float64), torch.tensor([low], dtype=torch.float64)
        x = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
        shifted = x + 1
        mean, std = predictor(point, x, t, s)
        slope = (predictor(point, shifted, t, s)[0] - mean)[0, 0]  # of the mean in x
        # marginal at t, put through the step
        mean_at_t, std_at_t = sde.marginal(point.means, t)
        mean_at_s, std_at_s = sde.marginal(point.means, s)
        torch.testing.assert_close(mean + slope * (mean_at_t - x), mean_at_s, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close((slope * std_at_t) ** 2 + std**2, std_at_s**2, rtol=1e-6, atol=1e-12)


def test_reverse_diffusion_on_ve_is_the_papers() -> None:
    """x + (σ_t² − σ_s²)·score with noise √(σ_t² − σ_s²) (Song et al. 2021, algorithm 2)."""
    sde = KarrasSDE()
    exact = mixture(sde, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator())
    t, s = torch.full((4,), 3.0, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
    mean, std = ReverseDiffusionPredictor()(exact, x, t, s)
    torch.testing.assert_close(mean, x + 5 * exact.score(x, t))
    torch.testing.assert_close(std, torch.full((4, 1), math.sqrt(5), dtype=torch.float64))
