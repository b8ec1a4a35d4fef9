"""The discrete processes are the papers': DDPM's products and posteriors, NCSN's noises, and the SDEs as N grows.

The papers' symbols (Ho et al. 2020; t = 1 … N, β_t, ᾱ_t, β̃_t) are computed here from the betas alone, in float64.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lightning import (
    DDIM,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    NoisePrediction,
)
from diffusion_lightning.samplers.ancestral import posterior

PROCESSES = {
    "ddpm": DiscreteVPSDE(),
    "short": DiscreteVPSDE(20, 1e-3, 0.5),
    "constant": DiscreteVPSDE(25, 0.2, 0.2),
    "cosine": DiscreteVPSDE(1000, schedule="cosine"),
    "cosine, short": DiscreteVPSDE(30, schedule="cosine"),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def grid(sde: SDE) -> Tensor:
    """The times of t = 1 … N, in double."""
    assert sde.times is not None
    size = len(sde.times)
    return torch.arange(1, size + 1, dtype=torch.float64) / size


def betas_by_hand(name: str) -> list[float]:
    """β_1 … β_N of Ho et al. 2020, section 4, or of Nichol & Dhariwal 2021, eq. 17."""
    sde = PROCESSES[name]
    n = sde.num_steps
    if "cosine" not in name:
        return [sde.beta_start + i / (n - 1) * (sde.beta_end - sde.beta_start) for i in range(n)]

    def f(t: float) -> float:
        return math.cos((t / n + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, n + 1)]


class Paper:
    """β_t, ᾱ_t, ᾱ_{t−1} and β̃_t of Ho et al. 2020, each ``(N,)``."""

    def __init__(self, name: str) -> None:
        self.beta = torch.tensor(betas_by_hand(name), dtype=torch.float64)
        products = [1.0]
        for beta in self.beta.tolist():
            products.append(products[-1] * (1 - beta))
        self.alpha_bar = torch.tensor(products[1:], dtype=torch.float64)
        self.earlier = torch.tensor(products[:-1], dtype=torch.float64)
        self.beta_tilde = (1 - self.earlier) / (1 - self.alpha_bar) * self.beta  # eq. 7


# ---- the processes


@every_process
def test_betas_are_the_papers(name: str) -> None:
    sde = PROCESSES[name]
    by_hand = torch.tensor(betas_by_hand(name), dtype=torch.float64)
    assert sde.betas.shape == (sde.num_steps,)
    # of the cosine's, 1 − f(t)/f(t − 1) is a difference of numbers near 1, and cos near π/2 is one of numbers near 1.6
    torch.testing.assert_close(sde.betas, by_hand, rtol=1e-11, atol=1e-14)
    if name == "cosine":
        assert sde.betas[-1] == 0.999  # clipped, where the formula has 1
        assert (sde.betas[:-1] < 0.999).all()


@every_process
def test_alpha_squared_is_the_product_of_one_minus_beta(name: str) -> None:
    sde, paper = PROCESSES[name], Paper(name)
    torch.testing.assert_close(sde.alpha(grid(sde)) ** 2, paper.alpha_bar, rtol=1e-10, atol=0)
    torch.testing.assert_close(sde.sigma(grid(sde)) ** 2, 1 - paper.alpha_bar, rtol=1e-10, atol=0)
    # in the single precision of the sampler's times: 1e-6 for ln α ≥ −10 rounded
    torch.testing.assert_close(sde.alpha(sde.times) ** 2, paper.alpha_bar.float(), rtol=5e-6, atol=0)


@every_process
def test_the_step_between_neighbours_is_ddpms(name: str) -> None:
    """x_t = √(1 − β_t)·x_{t−1} + √β_t·z (eq. 2); and before the first of them the data is clean."""
    sde, paper, t = PROCESSES[name], Paper(name), grid(PROCESSES[name])
    ratio, variance = sde.transition(t[1:], t[:-1])
    torch.testing.assert_close(ratio**2, 1 - paper.beta[1:], rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, paper.beta[1:], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(sde.sigma(t[:1]) ** 2, paper.beta[:1])
    zero = torch.zeros(1, dtype=torch.float64)
    assert (sde.alpha(zero), sde.sigma(zero)) == (1, 0)


@every_process
def test_between_the_times_alpha_falls_smoothly(name: str) -> None:
    """ln α is monotone, and it and its slope have no jumps at the times of the grid."""
    sde, t = PROCESSES[name], grid(PROCESSES[name])
    fine = torch.linspace(sde.t_min, 1, 20 * sde.num_steps + 1, dtype=torch.float64)
    assert (sde.alpha(fine).diff() < 0).all()
    assert (sde.drift_rate(fine) < 0).all()
    little = 1e-9 / sde.num_steps
    for function in (lambda t: sde.alpha(t).log(), sde.drift_rate):
        below, above = function(t[:-1] - little), function(t[:-1] + little)
        # the slope's own slope is at most 6 rises of ln α between neighbours in a step of the grid
        bound = 1e-7 * (sde.drift_rate(t[:-1]).abs() + sde.drift_rate(t[1:]).abs())
        assert ((below - above).abs() <= bound).all()


def test_the_noises_of_the_discrete_ve_process_are_ncsns() -> None:
    """A geometric progression from σ_min to σ_max, both included."""
    for n, low, high in ((10, 0.01, 1.0), (232, 0.01, 50.0), (2, 0.5, 2.0)):
        sde = DiscreteVESDE(n, low, high)
        by_hand = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
        assert sde.sigma(grid(sde)).tolist() == pytest.approx(by_hand, rel=1e-12)
        ratio, variance = sde.transition(grid(sde)[1:], grid(sde)[:-1])
        assert (ratio == 1).all()
        assert variance.tolist() == pytest.approx([b**2 - a**2 for a, b in itertools.pairwise(by_hand)])


# ---- N → ∞


TIMES = torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)  # on every grid of a multiple of 20


@pytest.mark.parametrize("quantity", ["alpha", "sigma", "drift_rate", "diffusion", "noise_level"])
@pytest.mark.parametrize("betas", [(0.1, 20.0), (2.0, 2.0)])
def test_the_discrete_vp_process_becomes_the_sde_at_the_rate_of_1_over_n(
    betas: tuple[float, float], quantity: str
) -> None:
    """With N·β fixed, doubling N halves the distance, at several times.

    The distance is a series in 1/N whose next term is smaller than the first by some β_max/N ≤ 20/4,000, so that the
    ratio is 2 to within some per cent; the first term itself is a few β_max²/N.
    """
    limit = VPSDE(*betas)
    distances = []
    for n in (4000, 8000, 16_000):
        sde = DiscreteVPSDE(n, betas[0] / n, betas[1] / n)
        distances.append((getattr(sde, quantity)(TIMES) / getattr(limit, quantity)(TIMES) - 1).abs())
    assert (distances[0] < 20**2 / 4000).all()
    for coarse, fine in itertools.pairwise(distances):
        ratio = coarse / fine
        assert ((ratio > 1.9) & (ratio < 2.1)).all(), ratio


@pytest.mark.parametrize("quantity", ["sigma", "diffusion"])
def test_the_discrete_ve_process_becomes_the_sde_at_the_rate_of_1_over_n(quantity: str) -> None:
    """ln σ(t) of the two differs by ln(σ_max/σ_min)·(1 − t)/(N − 1) exactly: nothing at T, as σ_max is its own."""
    limit, log_ratio, t = VESDE(0.01, 50.0), math.log(5000), TIMES[:-1]
    distances = []
    for n in (1000, 2000, 4000):
        sde = DiscreteVESDE(n, 0.01, 50.0)
        found, expected = getattr(sde, quantity)(TIMES).log(), getattr(limit, quantity)(TIMES).log()
        distances.append((found - expected).abs()[:-1])
        exact = -log_ratio * (1 - TIMES) / (n - 1)
        if quantity == "diffusion":
            exact = exact + 0.5 * math.log(n / (n - 1))
        torch.testing.assert_close(found - expected, exact, rtol=1e-9, atol=1e-12)
    assert len(distances[0]) == len(t)
    for coarse, fine in itertools.pairwise(distances):
        assert ((coarse / fine > 1.98) & (coarse / fine < 2.02)).all()


# ---- the posterior and the samplers, in the papers' symbols


def step(name: str) -> tuple[Paper, Tensor, Tensor, Tensor, Tensor]:
    """The paper, x_t and x0 of every t = 2 … N, and the times of t and t − 1."""
    paper, t = Paper(name), grid(PROCESSES[name])
    draw = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, len(t) - 1, 3, dtype=torch.float64, generator=draw)
    return paper, x, x0, t[1:], t[:-1]


def papers_posterior(paper: Paper, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 7: √ᾱ_{t−1}·β_t/(1 − ᾱ_t)·x0 + √(1 − β_t)·(1 − ᾱ_{t−1})/(1 − ᾱ_t)·x_t, and β̃_t, for t = 2 … N."""
    beta, alpha_bar, earlier = (v[1:, None] for v in (paper.beta, paper.alpha_bar, paper.earlier))
    of_x0 = earlier.sqrt() * beta / (1 - alpha_bar)
    of_x = (1 - beta).sqrt() * (1 - earlier) / (1 - alpha_bar)
    return of_x0 * x0 + of_x * x, paper.beta_tilde[1:, None]


@every_process
def test_the_posterior_is_equation_7_at_every_t(name: str) -> None:
    paper, x, x0, t, s = step(name)
    mean, std = posterior(PROCESSES[name], x, x0, t, s)
    expected, variance = papers_posterior(paper, x, x0)
    torch.testing.assert_close(mean, expected, rtol=1e-8, atol=1e-10)
    assert std.shape == (len(t), 1)
    torch.testing.assert_close(std**2, variance, rtol=1e-8, atol=0)


@every_process
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_a_ddpm_step_is_algorithm_2_at_every_t(name: str, variance: Any) -> None:
    """(x_t − β_t/√(1 − ᾱ_t)·ε)/√(1 − β_t) + σ_t·z, with σ_t² = β̃_t or β_t, from the predicted noise ε."""
    paper, x, epsilon, t, s = step(name)
    beta, alpha_bar = paper.beta[1:, None], paper.alpha_bar[1:, None]
    x0 = (x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    mean, std = DDPM(variance=variance).step(PROCESSES[name], x, x0, t, s)
    # towards T, x0 is 1/√ᾱ_t times as large as what it is made of
    bound = 1e-9 + 1e-13 / alpha_bar.sqrt()
    assert ((mean - (x - beta / (1 - alpha_bar).sqrt() * epsilon) / (1 - beta).sqrt()).abs() <= bound * 40).all()
    expected = paper.beta if variance == "beta" else paper.beta_tilde
    torch.testing.assert_close(std**2, expected[1:, None].expand_as(std), rtol=1e-8, atol=0)


@every_process
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_ddim_step_is_equation_12_at_every_t(name: str, eta: float, stride: int) -> None:
    """√ᾱ_s·(x_t − √(1 − ᾱ_t)ε)/√ᾱ_t + √(1 − ᾱ_s − τ²)·ε + τ·z, τ = η√((1 − ᾱ_s)/(1 − ᾱ_t))·√(1 − ᾱ_t/ᾱ_s).

    In the paper α_t stands for what DDPM calls ᾱ_t. Also for s = t − 3 (section 4.2 of the paper, eq. 16).
    """
    sde, paper, t = PROCESSES[name], Paper(name), grid(PROCESSES[name])
    now, later = paper.alpha_bar[stride:, None], paper.alpha_bar[:-stride, None]
    draw = torch.Generator().manual_seed(0)
    x, epsilon = torch.randn(2, len(now), 3, dtype=torch.float64, generator=draw)
    x0 = (x - (1 - now).sqrt() * epsilon) / now.sqrt()
    tau = eta * ((1 - later) / (1 - now)).sqrt() * (1 - now / later).sqrt()
    expected = later.sqrt() * x0 + (1 - later - tau**2).sqrt() * epsilon
    mean, std = DDIM(eta=eta).step(sde, x, x0, t[stride:], t[:-stride])
    # ε is read back from x and x0, of which the second is 1/√ᾱ_t times as large towards T
    assert ((mean - expected).abs() <= (1e-9 + 1e-13 / now.sqrt()) * 40).all()
    torch.testing.assert_close(std, tau, rtol=1e-8, atol=0)


MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]], dtype=torch.float64)


class Remembering(GaussianMixtureDenoiser):
    """The exact denoiser of a mixture that remembers the times and states it is asked about."""

    def __init__(self, sde: SDE) -> None:
        stds, weights = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.3, 0.2], [0.5, 0.3, 0.2]))
        super().__init__(MEANS, stds, weights, sde)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.asked.append((t.clone(), x.clone()))
        return super().denoise(x, t, **cond)


@pytest.mark.parametrize("name", ["short", "constant", "cosine, short", "ddpm"])
def test_ddpm_of_n_steps_visits_all_n_times_once_and_is_algorithm_2(name: str) -> None:
    """Written out with the paper's symbols, draw for draw; the last step is the predicted image, without noise."""
    sde, paper = PROCESSES[name], Paper(name)
    n, shape = sde.num_steps, (4, 2)
    exact, sampler = Remembering(sde), DDPM(n)
    x_T = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frames = sampler(exact, shape, x_T=x_T, generator=torch.Generator().manual_seed(2), trajectory=True)
    assert sampler.nfe == len(exact.asked) == n
    visited = torch.stack([t for t, _ in exact.asked])
    assert ((visited * n).round() == torch.arange(n, 0, -1)[:, None]).all()
    torch.testing.assert_close(visited, grid(sde).flip(0)[:, None].expand(n, 4), rtol=1e-7, atol=0)

    draw, x = torch.Generator().manual_seed(2), x_T
    for t in range(n, 0, -1):
        i = t - 1
        alpha_bar, earlier, beta = (v[i].item() for v in (paper.alpha_bar, paper.earlier, paper.beta))
        x0 = GaussianMixtureDenoiser.denoise(exact, x, visited[n - t])
        if t == 1:
            x = x0  # eq. 7 with ᾱ_0 = 1
        else:
            mean = (
                math.sqrt(earlier) * beta / (1 - alpha_bar) * x0
                + math.sqrt(1 - beta) * (1 - earlier) / (1 - alpha_bar) * x
            )
            z = torch.randn(*shape, generator=draw)
            x = mean + math.sqrt(paper.beta_tilde[i].item()) * z
        # the sampler's times have the precision of float32, which its α, up to ln α'·10⁻⁷, inherits; errors shrink
        torch.testing.assert_close(frames[n - t + 1], x, rtol=0, atol=1e-3 if "cosine" in name else 1e-4)


@every_process
def test_ddim_with_eta_1_is_ddpm_draw_for_draw(name: str) -> None:
    sde = PROCESSES[name]
    for steps in (2, 7, 20):
        exact = Remembering(sde)
        x_T = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        one, other, larger = (
            sampler(exact, (5, 2), x_T=x_T, generator=torch.Generator().manual_seed(2), trajectory=True)
            for sampler in (DDIM(steps, eta=1.0), DDPM(steps), DDPM(steps, "beta"))
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
        assert not torch.allclose(one[1], larger[1], rtol=1e-6)  # the same draws, another variance


@pytest.mark.parametrize("sampler", [DDPM, DDIM])
@pytest.mark.parametrize("name", ["ddpm", "short", "cosine, short"])
def test_fewer_steps_visit_evenly_spread_times_of_the_grid(name: str, sampler: type[DDPM | DDIM]) -> None:
    sde = PROCESSES[name]
    n = sde.num_steps
    for steps in (1, 2, 5, 13, 20):
        exact, drawn = Remembering(sde), sampler(steps)
        drawn(exact, (3, 2), generator=torch.Generator().manual_seed(0))
        visited = torch.tensor([t[0].item() for t, _ in exact.asked], dtype=torch.float64) * n
        assert len(visited) == steps
        torch.testing.assert_close(visited, visited.round(), rtol=1e-6, atol=0)
        even = torch.linspace(n, 1 if steps > 1 else n, steps, dtype=torch.float64)
        assert (visited - even).abs().max() <= 0.5 + 1e-6 * n


def test_ddpm_draws_from_a_gaussian_with_the_papers_variances() -> None:
    """On N(μ, s²I) the law of the samples follows from eq. 7 exactly, also for the larger variance β_t.

    Five standard errors of a mean and of a variance from n draws.
    """
    sde, paper, n, s = PROCESSES["short"], Paper("short"), 20_000, 0.6
    mu = torch.tensor([1.5, -0.7], dtype=torch.float64)
    exact = GaussianMixtureDenoiser(mu[None], torch.tensor([s]).double(), torch.ones(1).double(), sde)
    for variance, added in (("posterior", paper.beta_tilde), ("beta", paper.beta)):
        m, q = torch.zeros(2, dtype=torch.float64), 1 - paper.alpha_bar[-1].item()
        for i in range(sde.num_steps - 1, -1, -1):
            alpha_bar, earlier, beta = (v[i].item() for v in (paper.alpha_bar, paper.earlier, paper.beta))
            gain = math.sqrt(alpha_bar) * s**2 / (alpha_bar * s**2 + 1 - alpha_bar)  # dD/dx
            constant = mu - gain * math.sqrt(alpha_bar) * mu  # D at x = 0
            of_x0 = math.sqrt(earlier) * beta / (1 - alpha_bar)
            of_x = math.sqrt(1 - beta) * (1 - earlier) / (1 - alpha_bar)
            m = (of_x0 * gain + of_x) * m + of_x0 * constant
            q = (of_x0 * gain + of_x) ** 2 * q + (added[i].item() if i > 0 else 0)
        x = DDPM(20, variance)(exact, (n, 2), generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
        assert ((x.mean(0) - m).abs() < 5 * math.sqrt(q / n)).all()
        assert ((x.var(0) / q - 1).abs() < 5 * math.sqrt(2 / n)).all()


def test_a_network_sees_the_papers_noise_through_the_sampler() -> None:
    """With a network that predicts noise, single precision, the last step is (x_1 − √β_1·ε)/√(1 − β_1)."""
    sde = DiscreteVPSDE(12, 0.01, 0.4)

    class Half(torch.nn.Module):
        def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
            return 0.5 * x

    denoiser = NetworkDenoiser(Half(), sde, NoisePrediction())
    frames = DDPM(12)(denoiser, (6, 2), generator=torch.Generator().manual_seed(0), trajectory=True)
    expected = (frames[-2] - math.sqrt(0.01) * 0.5 * frames[-2]) / math.sqrt(0.99)
    torch.testing.assert_close(frames[-1], expected)


@pytest.mark.parametrize("sde", [DiscreteVPSDE(2, 1e-4, 0.9), DiscreteVPSDE(30, 1e-4, 0.3), DiscreteVPSDE(1000)])
def test_time_at_inverts_the_noise_level_though_betas_jump(sde: DiscreteVPSDE) -> None:
    t = torch.linspace(sde.t_min, sde.T, 501, dtype=torch.float64)
    torch.testing.assert_close(sde.time_at(sde.noise_level(t)), t, rtol=0, atol=1e-9)


def test_the_times_of_a_fine_grid_are_falling_strictly() -> None:
    """Where float32 can hardly tell neighbours apart."""
    sde = DiscreteVPSDE(10_000, 1e-5, 2e-3)
    for n in (9_989, 9_995, 9_999):
        assert (sde.timesteps(n).diff() < 0).all()
