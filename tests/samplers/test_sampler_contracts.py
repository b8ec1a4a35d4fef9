"""What holds for every sampler: counting, trajectories, randomness, conditions, the last step, and errors."""

import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from exact_models import ALL_SDES, CORRECTORS, PAIRS, PREDICTORS, SDES, generator, mixture, prior_std, recorded
from torch import Tensor, nn

import diffusion_lightning.samplers.ancestral
import diffusion_lightning.samplers.euler_maruyama
import diffusion_lightning.samplers.heun
import diffusion_lightning.samplers.langevin
import diffusion_lightning.samplers.predictor_corrector
from diffusion_lightning.denoiser import GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.parameterization import NoisePrediction
from diffusion_lightning.samplers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    DPMSolverPlusPlus,
    EulerMaruyama,
    Heun,
    LangevinCorrector,
    PredictorCorrector,
    ProbabilityFlowODE,
    Sampler,
)
from diffusion_lightning.samplers.ancestral import posterior
from diffusion_lightning.samplers.base import StepSampler, kept_states
from diffusion_lightning.samplers.euler_maruyama import reverse_step
from diffusion_lightning.sde import SDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, KarrasSDE

MODULES = (
    diffusion_lightning.samplers.ancestral,
    diffusion_lightning.samplers.langevin,
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
    "ddpm": (lambda: DDPM(6), 6),
    "ddpm, 2 steps": (lambda: DDPM(2), 2),
    "ddpm, beta": (lambda: DDPM(6, "beta"), 6),
    "ddim": (lambda: DDIM(6), 6),
    "ddim, 1 step": (lambda: DDIM(1), 1),
    "ddim, noisy": (lambda: DDIM(6, eta=0.5), 6),
    "dpm-solver++ 1": (lambda: DPMSolverPlusPlus(6, order=1), 6),
    "dpm-solver++ 2": (lambda: DPMSolverPlusPlus(6), 6),
    "dpm-solver++ 3": (lambda: DPMSolverPlusPlus(6, order=3), 6),
    "dpm-solver++, 1 step": (lambda: DPMSolverPlusPlus(1), 1),
    # 4 levels; the smallest noise level of all the processes at 0.05 is above 0.01
    "annealed langevin": (lambda: AnnealedLangevin(3, step_size=1e-5, scales=4, t_min=0.05), 4 * 3 + 1),
} | {
    f"pc {p}, {c}": (
        lambda p=p, c=c: PredictorCorrector(6, PREDICTORS[p], CORRECTORS[c], corrector_steps=2),
        6 * ((p != "none") + 2 * (c != "none")),
    )
    for p, c in PAIRS
}
DETERMINISTIC = {"heun", "heun, 1 step", "dopri5", "dopri5, no denoising", "midpoint", "ode euler, no denoising", "rk4"}
DETERMINISTIC |= {"ddim", "ddim, 1 step", *(kind for kind in SAMPLERS if kind.startswith("dpm-solver"))}
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
    denoiser = NetworkDenoiser(network, VPSDE(), NoisePrediction())
    assert sampler.nfe == 0
    sampler(denoiser, SHAPE, generator=generator())
    expected = SAMPLERS[kind][1]
    assert sampler.nfe == len(network.calls)
    assert sampler.nfe == expected or (expected is None and sampler.nfe > 10)
    first = sampler.nfe
    sampler(denoiser, SHAPE, generator=generator())
    assert sampler.nfe == first  # of the last call, not of all
    assert len(network.calls) == 2 * first


@pytest.mark.parametrize("name", ALL_SDES)
@every_sampler
def test_times_are_one_per_example_within_the_process_and_falling(kind: str, name: str) -> None:
    sde = ALL_SDES[name]
    denoiser, calls = recorded(mixture(sde, scale=6))  # smooth, so that adaptive solvers are quick
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
    denoiser = NetworkDenoiser(Flat(), VPSDE(), NoisePrediction())
    frames = sampler(denoiser, shape, generator=generator(2), trajectory=True)
    steps = sampler.num_steps(VPSDE()) if isinstance(sampler, StepSampler) else getattr(sampler, "steps")  # noqa: B009
    assert frames.shape == (steps + 1, *shape)
    torch.testing.assert_close(frames[0], VPSDE().prior(shape, generator=generator(2)))
    result = sampler(denoiser, shape, generator=generator(2))
    assert result.shape == shape
    torch.testing.assert_close(frames[-1], result)
    x_T = torch.randn(shape, generator=generator(3))
    frames = sampler(denoiser, shape, x_T=x_T, generator=generator(2), trajectory=True)
    assert torch.equal(frames[0], x_T)
    torch.testing.assert_close(frames[-1], sampler(denoiser, shape, x_T=x_T, generator=generator(2)))
    assert (frames[1:] - frames[:-1]).flatten(1).abs().amax(1).min() > 0  # every frame is another state


@every_sampler
def test_a_part_of_a_trajectory_is_of_the_same_states(kind: str) -> None:
    denoiser = NetworkDenoiser(Network(), VPSDE(), NoisePrediction())
    sampler = build(kind)
    whole = sampler(denoiser, SHAPE, generator=generator(2), trajectory=True)
    for frames in (2, 3, len(whole), 100):
        part = sampler(denoiser, SHAPE, generator=generator(2), trajectory=frames)
        torch.testing.assert_close(part, whole[kept_states(len(whole), frames)])


@pytest.mark.parametrize(
    ("states", "frames", "expected"),
    [
        (11, 3, [0, 5, 10]),
        (19, 10, list(range(0, 19, 2))),
        (1001, 2, [0, 1000]),
        (3, 10, [0, 1, 2]),
        (8, 4, [0, 2, 5, 7]),
        (4, True, [0, 1, 2, 3]),
    ],
)
def test_states_from_the_first_to_the_last_evenly(states: int, frames: int, expected: list[int]) -> None:
    assert kept_states(states, frames) == expected


def test_no_more_states_are_held_than_are_asked_for() -> None:
    held: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched(EulerMaruyama):
        def iterate(self, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
            nonlocal most
            for state in super().iterate(*args, **kwargs):
                held.append(weakref.ref(state))
                most = max(most, sum(state() is not None for state in held))
                yield state

    denoiser = NetworkDenoiser(Flat(), VPSDE(), NoisePrediction())
    part = Watched(100)(denoiser, SHAPE, generator=generator(), trajectory=4)
    assert len(held) == 100
    assert most <= 3  # the one before it, and what the caller has not let go of yet
    assert part.shape == (4, *SHAPE)
    assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("frames", [0, 1, -3, 2.5])
def test_a_trajectory_of_less_than_two_states_is_refused(frames: Any) -> None:
    denoiser = NetworkDenoiser(Flat(), VPSDE(), NoisePrediction())
    with pytest.raises(ValueError, match=rf"trajectory={frames}: must be at least 2"):
        EulerMaruyama(3)(denoiser, SHAPE, trajectory=frames)


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
    denoiser = NetworkDenoiser(network, VPSDE(), NoisePrediction())
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
    + [("ddpm", 5), ("ddpm, 2 steps", 1), ("ddpm, beta", 5), ("ddim, noisy", 5), ("annealed langevin", 12)]
    + [(kind, 0) for kind in sorted(DETERMINISTIC)],
)
def test_the_last_step_draws_no_noise(kind: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """n steps draw n − 1 times; correctors always, before the predictor's last step."""
    counter = Draws(monkeypatch)
    build(kind)(mixture(VPSDE()), SHAPE, x_T=torch.zeros(SHAPE), generator=generator())
    assert counter.count == draws


@pytest.mark.parametrize("name", ALL_SDES)
@pytest.mark.parametrize("kind", ["ddpm", "ddpm, beta", "ddim", "ddim, noisy", "annealed langevin"])
def test_the_last_step_of_these_is_the_denoised_image_and_the_one_before_has_its_noise(kind: str, name: str) -> None:
    sde = ALL_SDES[name]
    denoiser, calls = recorded(mixture(sde))
    frames = build(kind)(denoiser, (200, 2), generator=generator(), trajectory=True)
    t, s = calls[-1][0], calls[-2][0]
    torch.testing.assert_close(frames[-1], denoiser.denoise(frames[-2], t))
    if kind == "annealed langevin":
        assert torch.equal(s, t)
        # t_min, or the first time of the grid that is not below it
        lowest = 0.05 if sde.times is None else sde.times[sde.times >= torch.tensor(0.05)].min().item()
        torch.testing.assert_close(t, torch.full((200,), lowest))
        level = sde.noise_level(t)[:, None]
        x, y = (frame / sde.alpha(t)[:, None] for frame in frames[-3:-1])
        score = sde.alpha(t)[:, None] * denoiser.score(frames[-3], t)
        mean, std = x + 0.5e-5 * score, math.sqrt(1e-5) * torch.ones_like(level)
        noisy = True
    else:
        x0 = denoiser.denoise(frames[-3], s)
        mean, std = posterior(sde, frames[-3], x0, s, t)
        noisy, y = kind != "ddim", frames[-2]
        if kind == "ddpm, beta":
            std = sde.transition(s, t)[1].sqrt()[:, None]
        if "ddim" in kind:  # with less noise of its own, more of what was predicted
            std = (0.5 if noisy else 0.0) * std
            predicted = (frames[-3] - sde.alpha(s)[:, None] * x0) / sde.sigma(s)[:, None]
            mean = sde.alpha(t)[:, None] * x0 + (sde.sigma(t)[:, None] ** 2 - std**2).sqrt() * predicted
    if noisy:
        z = (y - mean) / std
        assert abs(z.std().item() - 1) < 5 / math.sqrt(2 * 400)
        assert abs(z.mean().item()) < 5 / math.sqrt(400)
    else:
        torch.testing.assert_close(y, mean)


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


@pytest.mark.parametrize("name", ALL_SDES)
@pytest.mark.parametrize(
    "kind", [EulerMaruyama, PredictorCorrector, ProbabilityFlowODE, Heun, DDPM, DDIM, DPMSolverPlusPlus]
)
def test_samplers_stop_at_t_min(kind: type[Sampler], name: str) -> None:
    sde, t_min = ALL_SDES[name], 0.05
    denoiser, calls = recorded(mixture(sde, scale=6))
    x = kind(steps=8, t_min=t_min)(denoiser, SHAPE, generator=generator())  # type: ignore[call-arg]
    last = calls[-1][0][0].item()
    if kind not in (EulerMaruyama, PredictorCorrector):  # which end with a step, not with the denoised image at t_min
        assert last == pytest.approx(t_min, rel=1e-4)
    else:
        assert last == pytest.approx(EulerMaruyama(8, t_min).times(sde, 8, x)[-2].item())
    assert min(t.min().item() for t, _ in calls) >= t_min * (1 - 1e-4)
    with pytest.raises(ValueError, match=rf"t_min={sde.T}: must be in"):
        kind(steps=8, t_min=sde.T)(denoiser, SHAPE)  # type: ignore[call-arg]
    before = 0.9 * sde.t_min
    with pytest.raises(ValueError, match=rf"t_min={before}: must be in \[{sde.t_min:g}, {sde.T:g}\)"):
        kind(steps=8, t_min=before)(denoiser, SHAPE)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ALL_SDES)
def test_adaptive_solvers_never_ask_for_a_time_outside_the_process(name: str) -> None:
    """Also for data centred at 0, where hardly anything happens near T and the first trial step is long."""
    sde = ALL_SDES[name]
    centred = GaussianMixtureDenoiser(torch.zeros(1, 2), torch.tensor([0.5]), torch.ones(1), sde)
    denoiser, calls = recorded(centred)
    x = ProbabilityFlowODE(rtol=1e-3, atol=1e-3)(denoiser, (100, 2), generator=generator())
    assert x.isfinite().all()
    assert all(sde.t_min * (1 - 1e-6) <= t.min() <= t.max() <= sde.T * (1 + 1e-6) for t, _ in calls)


# ---- annealed Langevin dynamics


@pytest.mark.parametrize("name", ALL_SDES)
def test_annealed_langevin_visits_a_discrete_processs_own_noises_else_a_geometric_progression(name: str) -> None:
    sde = ALL_SDES[name]
    lowest = sde.noise_level(torch.tensor([sde.t_min], dtype=torch.float64)).item()
    highest = sde.noise_level(torch.tensor([sde.T], dtype=torch.float64)).item()
    sampler = AnnealedLangevin(2, step_size=0.1 * lowest**2, scales=7)
    denoiser, calls = recorded(mixture(sde))
    sampler(denoiser, SHAPE, generator=generator())
    visited = torch.stack([t for t, _ in calls])[:, 0]
    assert torch.equal(visited[:-1:2], visited[1::2])  # two steps at each, and the last evaluation where the last were
    assert visited[-1] == visited[-2]
    levels = sde.noise_level(visited[:-1:2].double())
    if sde.times is None:
        by_hand = [highest * (lowest / highest) ** (i / 6) for i in range(7)]
        # the denoiser is told the times in single precision: relative to the level, 2⁻²⁴ of t times its slope
        rates = [sde.rates(visited[:-1:2].double())[i] for i in (0, 1)]
        slope = rates[1] / sde.sigma(visited[:-1:2].double()) - rates[0] / sde.alpha(visited[:-1:2].double())
        bound = 1e-6 + torch.finfo(torch.float32).eps * slope * visited[:-1:2].double()
        assert ((levels / torch.tensor(by_hand, dtype=torch.float64) - 1).abs() <= bound).all()
    else:
        torch.testing.assert_close(visited[:-1:2], sde.times.flip(0), rtol=1e-6, atol=0)
    assert sampler.nfe == 2 * len(levels) + 1


@pytest.mark.parametrize("steps_per_scale", [1, 2, 6])
@pytest.mark.parametrize("sde", [KarrasSDE(0.1, 10.0), DiscreteVESDE(12, 0.1, 5.0), DiscreteVPSDE(12, 0.01, 0.6)])
def test_annealed_langevin_is_algorithm_1(sde: SDE, steps_per_scale: int) -> None:
    """Draw for draw: a_i = ε·σ_i²/σ_L², x ← x + ½a_i·score + √a_i·z, in x̃ = x/α where the data shrinks; then D."""
    epsilon, denoiser = 3e-3, mixture(sde, dtype=torch.float64)
    x_T = torch.randn(SHAPE, dtype=torch.float64, generator=generator(1))
    sampler = AnnealedLangevin(steps_per_scale, epsilon, scales=9)
    frames = sampler(denoiser, SHAPE, x_T=x_T, generator=generator(2), trajectory=True)
    levels = torch.tensor(sampler.levels(sde), dtype=torch.float64)
    draws, x, i = generator(2), x_T / sde.alpha(torch.tensor([sde.T], dtype=torch.float64)), 0
    for level in levels:
        t = sde.time_at(level).expand(5)
        alpha, size = sde.alpha(t)[:, None], epsilon * (level / levels[-1]) ** 2
        for _ in range(steps_per_scale):
            score = alpha * denoiser.score(alpha * x, t)  # of x̃
            x = x + 0.5 * size * score + size.sqrt() * torch.randn(SHAPE, generator=draws)
            i += 1
            torch.testing.assert_close(frames[i], alpha * x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frames[-1], denoiser.denoise(alpha * x, t), rtol=1e-5, atol=1e-5)
    assert len(frames) == i + 2


@pytest.mark.parametrize("name", ALL_SDES)
def test_an_unstable_step_size_is_refused_and_one_that_is_advised_works(name: str) -> None:
    """Twice the square of the smallest noise level is the largest: twice the variance there, and never more than 4."""
    sde = ALL_SDES[name]
    for t_min in (None, 0.05):
        time = torch.tensor([t_min or sde.t_min], dtype=torch.float64)
        largest = 2 * sde.noise_level(time).item() ** 2
        with pytest.raises(
            ValueError, match=rf"^step_size={1.01 * largest}: .*unstable.* of {type(sde).__name__}"
        ) as e:
            AnnealedLangevin(1, 1.01 * largest, t_min=t_min)(mixture(sde), SHAPE)
        advised = float(re.search(r"must be at most (\S+) \(a tenth of that is usual\)", str(e.value))[1])  # type: ignore[index]
        assert advised == pytest.approx(largest, rel=1e-9)
        for step_size in (advised, advised / 10):
            x = AnnealedLangevin(1, step_size, t_min=t_min)(mixture(sde), SHAPE, generator=generator())
            assert x.isfinite().all()


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
        (lambda: Heun(churn=math.nan), "churn=nan"),
        (lambda: Heun(churn=math.inf), "churn=inf"),
        (lambda: Heun(churn_noise=-1.0), "churn_noise=-1.0"),
        (lambda: Heun(churn_noise=math.nan), "churn_noise=nan"),
        (lambda: Heun(churn_min=math.nan), "churn_min=nan"),
        (lambda: Heun(churn_min=2.0, churn_max=1.0), "churn_max=1.0: need 0 <= churn_min <= churn_max"),
        (lambda: EulerMaruyama(math.nan), "steps=nan"),  # type: ignore[arg-type]
        (lambda: EulerMaruyama(2.5), "steps=2.5"),  # type: ignore[arg-type]
        (lambda: ProbabilityFlowODE(steps=math.nan), "steps=nan"),  # type: ignore[arg-type]
        (lambda: AnnealedLangevin(math.nan), "steps_per_scale=nan"),  # type: ignore[arg-type]
        (lambda: AnnealedLangevin(scales=math.nan), "scales=nan"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(corrector_steps=math.nan), "corrector_steps=nan"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(snr=math.inf), "snr=inf"),
        (lambda: Heun(rho=math.nan), "rho=nan"),
        (lambda: Heun(rho=math.inf), "rho=inf"),
        (lambda: PredictorCorrector(snr=math.nan), "snr=nan"),
        (lambda: ProbabilityFlowODE(rtol=math.nan), "rtol=nan"),
        (lambda: ProbabilityFlowODE(atol=math.nan), "atol=nan"),
        (lambda: ProbabilityFlowODE(rtol=math.inf), "rtol=inf"),
        (lambda: DDPM(0), "steps=0"),
        (lambda: DDPM(variance="large"), "variance='large': must be 'posterior' or 'beta'"),  # type: ignore[arg-type]
        (lambda: DDPM(t_min=0.0), "t_min=0.0"),
        (lambda: DDPM(t_min=math.nan), "t_min=nan"),
        (lambda: DDIM(0), "steps=0"),
        (lambda: DDIM(eta=-0.1), r"eta=-0.1: must be in \[0, 1\]"),
        (lambda: DDIM(eta=1.1), "eta=1.1"),
        (lambda: DDIM(eta=math.nan), "eta=nan"),
        (lambda: DPMSolverPlusPlus(0), "steps=0"),
        (lambda: DPMSolverPlusPlus(order=4), "order=4: must be 1, 2 or 3"),  # type: ignore[arg-type]
        (lambda: DPMSolverPlusPlus(order=0), "order=0"),  # type: ignore[arg-type]
        (lambda: DPMSolverPlusPlus(rho=0.5), "rho=0.5"),
        (lambda: DPMSolverPlusPlus(rho=math.nan), "rho=nan"),
        (lambda: DPMSolverPlusPlus(rho=math.inf), "rho=inf"),
        (lambda: AnnealedLangevin(0), "steps_per_scale=0"),
        (lambda: AnnealedLangevin(step_size=0.0), "step_size=0.0"),
        (lambda: AnnealedLangevin(step_size=-1e-5), "step_size=-1e-05"),
        (lambda: AnnealedLangevin(step_size=math.nan), "step_size=nan"),
        (lambda: AnnealedLangevin(step_size=math.inf), "step_size=inf"),
        (lambda: AnnealedLangevin(scales=1), "scales=1"),
        (lambda: AnnealedLangevin(t_min=-1.0), "t_min=-1.0"),
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
        ProbabilityFlowODE()(NetworkDenoiser(Fails(), VPSDE(), NoisePrediction()), SHAPE, generator=generator())


def test_samples_are_where_the_prior_puts_them() -> None:
    """Without a start, the state begins with the spread of the prior."""
    for sde in SDES.values():
        frames = EulerMaruyama(1)(mixture(sde), (2000, 2), generator=generator(), trajectory=True)
        assert frames[0].std().item() == pytest.approx(prior_std(sde), rel=0.1)


def test_annealed_langevin_keeps_the_time_of_the_grid_that_t_min_names() -> None:
    """Though the grid is of single precision and t_min of double."""
    for i, t_min in enumerate((0.1, 0.3, 0.7, 0.9)):
        assert len(AnnealedLangevin(t_min=t_min).levels(DiscreteVESDE(10))) == (10, 8, 4, 2)[i]
