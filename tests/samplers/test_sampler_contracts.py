"""What holds for every sampler: counting, trajectories, randomness, conditions, the last step, and errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from exact_models import CORRECTORS, PAIRS, PREDICTORS, SDES, generator, mixture, prior_std, recorded
from torch import Tensor, nn

import diffusion_lightning.samplers.euler_maruyama
import diffusion_lightning.samplers.heun
import diffusion_lightning.samplers.predictor_corrector
from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.parameterization import NoisePrediction
from diffusion_lightning.samplers import (
    EulerMaruyama,
    Heun,
    LangevinCorrector,
    PredictorCorrector,
    ProbabilityFlowODE,
    Sampler,
)
from diffusion_lightning.samplers.euler_maruyama import reverse_step
from diffusion_lightning.sde import VPSDE, KarrasSDE

MODULES = (
    diffusion_lightning.samplers.euler_maruyama,
    diffusion_lightning.samplers.heun,
    diffusion_lightning.samplers.predictor_corrector,
)
SHAPE = (5, 2)

# each with its number of evaluations; of an adaptive solver it depends on the model
SAMPLERS: dict[str, tuple[Callable[[], Sampler], int | None]] = {
    "euler-maruyama": (lambda: EulerMaruyama(6), 6),
    "heun": (lambda: Heun(6), 11),
    "heun, 1 step": (lambda: Heun(1), 1),
    "heun, churn": (lambda: Heun(6, churn=2.0), 11),
    "dopri5": (lambda: ProbabilityFlowODE(steps=4), None),
    "dopri5, no denoising": (lambda: ProbabilityFlowODE(steps=4, denoise=False), None),
    "midpoint": (lambda: ProbabilityFlowODE("midpoint", steps=6), 13),
    "ode euler, no denoising": (lambda: ProbabilityFlowODE("euler", steps=6, denoise=False), 6),
    "rk4": (lambda: ProbabilityFlowODE("rk4", steps=6), 25),
} | {
    f"pc {p}, {c}": (
        lambda p=p, c=c: PredictorCorrector(6, PREDICTORS[p], CORRECTORS[c], corrector_steps=2),
        6 * ((p != "none") + 2 * (c != "none")),
    )
    for p, c in PAIRS
}
DETERMINISTIC = {"heun", "heun, 1 step", "dopri5", "dopri5, no denoising", "midpoint", "ode euler, no denoising", "rk4"}
every_sampler = pytest.mark.parametrize("kind", SAMPLERS)


def build(kind: str) -> Sampler:
    return SAMPLERS[kind][0]()


class Network(nn.Module):
    """A small denoising network that counts its calls and remembers their conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, time_signal: Tensor, **cond: Any) -> Tensor:
        self.calls.append(cond)
        self.times.append(time_signal)
        shift = cond["labels"][:, None] if cond else 0.0
        return torch.tanh(x) * (0.5 + 0.1 * time_signal[:, None]) + 0.1 * shift


class Draws:
    """Stands in for ``standard_normal``: counts the draws, and spoils the one with the given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoil: int | None = None) -> None:
        self.count, self.spoil = 0, spoil
        for module in MODULES:
            monkeypatch.setattr(module, "standard_normal", self)

    def __call__(self, shape: Sequence[int], *, generator: torch.Generator | None = None, **_: Any) -> Tensor:
        self.count += 1
        z = torch.randn(*shape, generator=generator)
        return 1e6 * z if self.count == self.spoil else z


# ---- counting


@every_sampler
def test_evaluations_are_counted(kind: str) -> None:
    sampler, network = build(kind), Network()
    denoiser = Denoiser(network, VPSDE(), NoisePrediction())
    assert sampler.nfe == 0
    sampler(denoiser, SHAPE, generator=generator())
    expected = SAMPLERS[kind][1]
    assert sampler.nfe == len(network.calls)
    assert sampler.nfe == expected or (expected is None and sampler.nfe > 10)
    first = sampler.nfe
    sampler(denoiser, SHAPE, generator=generator())
    assert sampler.nfe == first  # of the last call, not of all
    assert len(network.calls) == 2 * first


@pytest.mark.parametrize("name", SDES)
@every_sampler
def test_times_are_one_per_example_within_the_process_and_falling(kind: str, name: str) -> None:
    sde = SDES[name]
    denoiser, calls = recorded(mixture(sde))
    sampler = build(kind)
    sampler(denoiser, SHAPE, generator=generator())
    times = torch.stack([t for t, _ in calls]).double()
    assert times.shape == (sampler.nfe, 5)
    assert (times == times[:, :1]).all()
    assert times.max() == pytest.approx(sde.T, rel=1e-6)
    assert times[0, 0] == pytest.approx(sde.T, rel=1e-6)
    assert times.min() >= sde.t_min * (1 - 1e-6)
    if not isinstance(sampler, ProbabilityFlowODE) and "churn" not in kind:
        assert (times[:, 0].diff() <= 0).all()


# ---- trajectories, starts, and randomness


@pytest.mark.parametrize("shape", [(5, 2), (3, 1, 2, 2)])
@every_sampler
def test_a_trajectory_runs_from_the_start_to_the_result(kind: str, shape: tuple[int, ...]) -> None:
    sampler = build(kind)
    denoiser = Denoiser(Flat(), VPSDE(), NoisePrediction())
    frames = sampler(denoiser, shape, generator=generator(2), trajectory=True)
    assert frames.shape == (getattr(sampler, "steps") + 1, *shape)  # noqa: B009
    torch.testing.assert_close(frames[0], VPSDE().prior(shape, generator=generator(2)))
    result = sampler(denoiser, shape, generator=generator(2))
    assert result.shape == shape
    torch.testing.assert_close(frames[-1], result)
    x_T = torch.randn(shape, generator=generator(3))
    frames = sampler(denoiser, shape, x_T=x_T, generator=generator(2), trajectory=True)
    assert torch.equal(frames[0], x_T)
    torch.testing.assert_close(frames[-1], sampler(denoiser, shape, x_T=x_T, generator=generator(2)))
    assert (frames[1:] - frames[:-1]).flatten(1).abs().amax(1).min() > 0  # every frame is another state


class Flat(nn.Module):
    """A network that takes any shape."""

    def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
        return 0.5 * torch.tanh(x)


@every_sampler
def test_the_start_is_honoured_and_left_alone(kind: str) -> None:
    sampler, denoiser = build(kind), mixture(VPSDE())
    one, other = (torch.randn(SHAPE, generator=generator(seed)) for seed in (1, 2))
    kept = one.clone()
    result = sampler(denoiser, SHAPE, x_T=one, generator=generator())
    assert torch.equal(one, kept)
    assert torch.equal(result, sampler(denoiser, list(SHAPE), x_T=one, generator=generator()))
    assert not torch.equal(result, sampler(denoiser, SHAPE, x_T=other, generator=generator()))
    assert result.dtype == torch.float32
    assert sampler(mixture(VPSDE(), dtype=torch.float64), SHAPE, x_T=one.double()).dtype == torch.float64


@every_sampler
def test_the_generator_decides_alone(kind: str) -> None:
    sampler, denoiser = build(kind), mixture(VPSDE())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampler(denoiser, SHAPE, generator=generator(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sampler(denoiser, SHAPE, generator=generator(4)), first)
    assert not torch.equal(sampler(denoiser, SHAPE, generator=generator(5)), first)
    # without a generator, the global one
    torch.manual_seed(3)
    unseeded = sampler(denoiser, SHAPE)
    assert not torch.equal(sampler(denoiser, SHAPE), unseeded)
    torch.manual_seed(3)
    assert torch.equal(sampler(denoiser, SHAPE), unseeded)


@every_sampler
def test_only_stochastic_samplers_draw_after_the_start(kind: str) -> None:
    x_T, noise = torch.randn(SHAPE, generator=generator(1)), generator(2)
    before = noise.get_state()
    build(kind)(mixture(VPSDE()), SHAPE, x_T=x_T, generator=noise)
    assert torch.equal(noise.get_state(), before) == (kind in DETERMINISTIC)


@every_sampler
def test_no_graph_is_kept(kind: str) -> None:
    denoiser = mixture(VPSDE())
    assert not build(kind)(denoiser, SHAPE, generator=generator()).requires_grad
    assert not build(kind)(denoiser, SHAPE, x_T=torch.randn(SHAPE, requires_grad=True)).requires_grad
    assert torch.is_grad_enabled()


@every_sampler
def test_conditions_reach_every_evaluation(kind: str) -> None:
    sampler, network = build(kind), Network()
    denoiser = Denoiser(network, VPSDE(), NoisePrediction())
    labels = torch.tensor([0, 1, 2, 3, 4])
    zeros = sampler(denoiser, SHAPE, generator=generator(), labels=torch.zeros(5))
    network.calls.clear()
    result = sampler(denoiser, SHAPE, generator=generator(), labels=labels)
    assert len(network.calls) == sampler.nfe
    assert all(list(cond) == ["labels"] and torch.equal(cond["labels"], labels) for cond in network.calls)
    assert not torch.equal(result[1:], zeros[1:])


@every_sampler
def test_the_progress_bar_changes_nothing(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    sampler, denoiser = build(kind), mixture(VPSDE())
    quiet = sampler(denoiser, SHAPE, generator=generator())
    assert capsys.readouterr().err == ""
    assert torch.equal(sampler(denoiser, SHAPE, generator=generator(), progress=True), quiet)
    assert type(sampler).__name__ in capsys.readouterr().err


# ---- the last step


@pytest.mark.parametrize("name", SDES)
def test_the_last_step_of_euler_maruyama_is_the_mean(name: str) -> None:
    sde = SDES[name]
    denoiser = mixture(sde)
    frames = EulerMaruyama(8)(denoiser, (50, 2), generator=generator(), trajectory=True)
    t = sde.timesteps(8)
    mean, std = reverse_step(denoiser, frames[-2], t[-2].expand(50), t[-1].expand(50))
    torch.testing.assert_close(frames[-1], mean)
    # before, the steps have noise of the right size
    mean, std = reverse_step(denoiser, frames[-3], t[-3].expand(50), t[-2].expand(50))
    z = (frames[-2] - mean) / std
    assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * 100)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("predictor", ["euler", "reverse", "ancestral"])
def test_the_last_step_of_a_predictor_is_the_mean(name: str, predictor: str) -> None:
    sde, used = SDES[name], PREDICTORS[predictor]
    assert used is not None
    denoiser = mixture(sde)
    sampler = PredictorCorrector(8, used, None)
    frames = sampler(denoiser, (50, 2), generator=generator(), trajectory=True)
    t = sde.timesteps(8)
    mean, std = used(denoiser, frames[-2], t[-2].expand(50), t[-1].expand(50))
    torch.testing.assert_close(frames[-1], mean)
    mean, std = used(denoiser, frames[-3], t[-3].expand(50), t[-2].expand(50))
    z = (frames[-2] - mean) / std
    assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * 100)


@pytest.mark.parametrize(
    ("kind", "draws"),
    [("euler-maruyama", 5)]
    + [(f"pc {p}, {c}", 5 * (p != "none") + 12 * (c != "none")) for p, c in PAIRS]
    + [("heun", 0), ("midpoint", 0), ("dopri5", 0)],
)
def test_the_last_step_draws_no_noise(kind: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """n steps draw n − 1 times; correctors always, before the predictor's last step."""
    counter = Draws(monkeypatch)
    build(kind)(mixture(VPSDE()), SHAPE, x_T=torch.zeros(SHAPE), generator=generator())
    assert counter.count == draws


@pytest.mark.parametrize("corrector", ["langevin", "annealed"])
def test_the_last_noise_of_a_corrector_alone_is_not_in_the_result(
    corrector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(spoil: int | None) -> Tensor:
        with monkeypatch.context() as patch:
            draws = Draws(patch, spoil)
            x = build(f"pc none, {corrector}")(mixture(VPSDE()), SHAPE, x_T=torch.zeros(SHAPE), generator=generator())
        assert draws.count == 12
        return x

    assert torch.equal(sample(spoil=12), sample(spoil=None))
    assert not torch.allclose(sample(spoil=11), sample(spoil=None))


def test_churn_adds_noise_between_its_limits_and_never_above_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    x_T = torch.randn(SHAPE, generator=generator()) * 80
    denoiser = mixture(KarrasSDE())
    plain = Heun(20)(denoiser, SHAPE, x_T=x_T)
    for settings, expected in (
        ({"churn": 1.0}, 19),  # at every level but the first, where it would exceed σ_max
        ({"churn": 1.0, "churn_min": 1.0, "churn_max": 20.0}, 7),
        ({"churn": 1.0, "churn_min": 100.0}, 0),
        ({"churn": 0.0}, 0),
    ):
        with monkeypatch.context() as patch:
            draws = Draws(patch)
            x = Heun(20, **settings)(denoiser, SHAPE, x_T=x_T, generator=generator())
        levels = KarrasSDE().timesteps(19)
        if "churn_max" in settings:
            assert expected == ((levels >= 1) & (levels <= 20)).sum()
        assert draws.count == expected
        assert torch.equal(x, plain) == (expected == 0)


@pytest.mark.parametrize("snr", [0.05, 0.16])
@pytest.mark.parametrize("corrector", ["langevin", "annealed"])
def test_a_langevin_step_is_its_formula(corrector: str, snr: float) -> None:
    """x + ε·score + √(2ε)·z; ε = 2(r‖z‖/‖score‖)² with the norms' means, or 2(r·σ)²."""
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(40, 2, generator=generator(1))
    t = torch.full((40,), 0.4)
    used = CORRECTORS[corrector]
    assert used is not None
    corrected, mean = used(denoiser, x, t, snr, generator(2))
    score, z = denoiser.score(x, t), torch.randn(40, 2, generator=generator(2))
    if corrector == "langevin":
        step = 2 * (snr * math.sqrt(2) / score.norm(dim=1).mean()) ** 2
    else:
        step = 2 * (snr * sde.sigma(t)[:1]) ** 2
    torch.testing.assert_close(mean, x + step * score)
    torch.testing.assert_close(corrected, x + step * score + torch.sqrt(2 * step) * z)


def test_langevin_keeps_the_density_it_corrects_towards() -> None:
    """Many small steps at one time, starting elsewhere, end in p_t."""
    sde = VPSDE()
    denoiser, t = mixture(sde, scale=3), torch.full((4000,), 0.3)
    x, noise = torch.randn(4000, 2, generator=generator(1)), generator(2)
    for _ in range(200):
        x, _ = LangevinCorrector()(denoiser, x, t, 0.16, noise)
    data = denoiser.sample_data(4000, generator(3))
    expected = sde.perturb(data, t, torch.randn(4000, 2, generator=generator(4)))
    assert ((x.mean(0) - expected.mean(0)).abs() < 5 * expected.std(0) * math.sqrt(2 / 4000) + 0.02).all()
    assert ((x.std(0) / expected.std(0) - 1).abs() < 5 * math.sqrt(1 / 4000) + 0.03).all()


# ---- where to stop


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("t_min", [0.05, 1e-3, 1e-6])
def test_the_grid_is_the_processs_own_stretched_to_end_at_t_min(name: str, t_min: float) -> None:
    sde, x = SDES[name], torch.zeros(1)
    times = EulerMaruyama(10, t_min=t_min).times(sde, 50, x)
    own = sde.timesteps(50).double()
    stretched = sde.T - (sde.T - own) * (sde.T - t_min) / (sde.T - sde.t_min)
    torch.testing.assert_close(times[:-1], stretched[:-1].float(), rtol=1e-5, atol=1e-7)
    assert times[0] == sde.T
    assert times[-1] == torch.tensor(t_min)  # exactly: at 0 there is no score
    assert (times.diff() < 0).all()
    assert torch.equal(EulerMaruyama(10).times(sde, 50, x), sde.timesteps(50))
    assert EulerMaruyama(10).times(sde, 50, x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("kind", [EulerMaruyama, PredictorCorrector, ProbabilityFlowODE, Heun])
def test_samplers_stop_at_t_min(kind: type[Sampler], name: str) -> None:
    sde, t_min = SDES[name], 0.05
    denoiser, calls = recorded(mixture(sde))
    x = kind(steps=8, t_min=t_min)(denoiser, SHAPE, generator=generator())  # type: ignore[call-arg]
    last = calls[-1][0][0].item()
    if kind in (ProbabilityFlowODE, Heun):  # which end with the denoised image at t_min
        assert last == pytest.approx(t_min, rel=1e-4)
    else:
        assert last == pytest.approx(EulerMaruyama(8, t_min).times(sde, 8, x)[-2].item())
    assert min(t.min().item() for t, _ in calls) >= t_min * (1 - 1e-4)
    with pytest.raises(ValueError, match=rf"t_min={sde.T}: must be in"):
        kind(steps=8, t_min=sde.T)(denoiser, SHAPE)  # type: ignore[call-arg]


# ---- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EulerMaruyama(0), "steps=0"),
        (lambda: EulerMaruyama(-3), "steps=-3"),
        (lambda: PredictorCorrector(0), "steps=0"),
        (lambda: Heun(0), "steps=0"),
        (lambda: ProbabilityFlowODE(steps=0), "steps=0"),
        (lambda: EulerMaruyama(5, t_min=0.0), "t_min=0.0"),
        (lambda: PredictorCorrector(5, t_min=-1.0), "t_min=-1.0"),
        (lambda: ProbabilityFlowODE(t_min=0.0), "t_min=0.0"),
        (lambda: Heun(t_min=math.nan), "t_min=nan"),
        (lambda: PredictorCorrector(snr=0.0), "snr=0.0"),
        (lambda: PredictorCorrector(snr=-0.1), "snr=-0.1"),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps=0"),
        (lambda: PredictorCorrector(predictor=None, corrector=None), "predictor=None, corrector=None"),
        (lambda: ProbabilityFlowODE(rtol=0.0), "rtol=0.0"),
        (lambda: ProbabilityFlowODE(atol=-1e-5), "atol=-1e-05"),
        (lambda: ProbabilityFlowODE("newton"), "method='newton'"),  # type: ignore[arg-type]
        (lambda: Heun(rho=0.5), "rho=0.5"),
        (lambda: Heun(churn=-1.0), "churn=-1.0"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_sampler
def test_bad_starts_are_named(kind: str) -> None:
    sampler, denoiser = build(kind), mixture(VPSDE())
    with pytest.raises(ValueError, match=r"x_T has shape \(4, 2\): must be \(5, 2\)"):
        sampler(denoiser, SHAPE, x_T=torch.zeros(4, 2))
    for bad in (math.nan, math.inf):
        x_T = torch.zeros(SHAPE)
        x_T[3, 1] = bad
        with pytest.raises(ValueError, match="x_T holds NaN or infinite"):
            sampler(denoiser, SHAPE, x_T=x_T)
    with pytest.raises(ValueError, match=r"shape=\(0, 2\)"):
        sampler(denoiser, (0, 2))
    with pytest.raises(ValueError, match=r"shape=\(5, 0\)"):
        sampler(denoiser, (5, 0))


def test_a_network_that_fails_is_told_by_the_adaptive_solver() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
            return torch.full_like(x, math.nan)

    with pytest.raises(FloatingPointError, match=r"dopri5 could not reach rtol=1e-05"):
        ProbabilityFlowODE()(Denoiser(Fails(), VPSDE(), NoisePrediction()), SHAPE, generator=generator())


def test_samples_are_where_the_prior_puts_them() -> None:
    """Without a start, the state begins with the spread of the prior."""
    for sde in SDES.values():
        frames = EulerMaruyama(1)(mixture(sde), (2000, 2), generator=generator(), trajectory=True)
        assert frames[0].std().item() == pytest.approx(prior_std(sde), rel=0.1)
