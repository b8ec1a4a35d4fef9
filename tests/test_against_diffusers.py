"""Trajectories against those of diffusers' schedulers: same start, same exact network, same noise, every step.

Where diffusers takes other steps by default it is told to take these, or the difference is computed.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor, nn

from diffusion_lightning.denoiser import Denoiser, GaussianMixtureDenoiser, NetworkDenoiser
from diffusion_lightning.parameterization import KarrasPreconditioning, NoisePrediction, VelocityPrediction
from diffusion_lightning.samplers import DDIM, DDPM, DPMSolverPlusPlus, Heun, Sampler
from diffusion_lightning.sde import SDE, DiscreteVPSDE, KarrasSDE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers and NumPy

SHAPE = (32, 2)
GRID = 1000
NO_CLIPPING = {"clip_sample": False}
"""Clipping the denoised image to [-1, 1] is diffusers' default, and no part of the algorithms."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(sde: SDE) -> GaussianMixtureDenoiser:
    """Three separated components; in double, so that the rounding of both sides is all that differs."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]], dtype=torch.float64)
    stds, weights = torch.tensor([0.1, 0.3, 0.2]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    return GaussianMixtureDenoiser(means, stds, weights, sde)


class ExactNetwork(nn.Module):
    """What a perfect network would put out for the noise ``ε`` or the velocity ``v`` of a process, given x and t."""

    def __init__(self, sde: SDE, target: str) -> None:
        super().__init__()
        self.denoiser, self.target = exact(sde), target

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sde = self.denoiser.sde
        x64, t64 = x.double(), t.double().clamp(sde.t_min, sde.T)
        noise = self.denoiser.noise(x64, t64)
        if self.target == "v_prediction":
            alpha, sigma = sde.alpha(t64)[:, None], sde.sigma(t64)[:, None]
            noise = alpha * noise - sigma * self.denoiser.denoise(x64, t64)
        return noise.to(x)


class ExactEDMNetwork(nn.Module):
    """EDM's F(c_in·x, ¼ ln σ) = (D − c_skip·x)/c_out."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.denoiser, self.sigma_data = exact(KarrasSDE()), sigma_data

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        sigma = torch.exp(4 * c_noise.double()).clamp(0.002, 80.0)
        variance = (sigma**2 + self.sigma_data**2)[:, None]
        x = scaled.double() * variance.sqrt()
        residue = self.denoiser.denoise(x, sigma) - self.sigma_data**2 / variance * x
        return (residue / (sigma[:, None] * self.sigma_data / variance.sqrt())).to(scaled)


def ours(sampler: Sampler, denoiser: Denoiser, x: Tensor, seed: int = 0) -> Tensor:
    return sampler(denoiser, x.shape, x_T=x, generator=generator(seed), trajectory=True)


def agree(ours: Tensor, theirs: list[Tensor]) -> None:
    """To 1e-3, and 2e-5 of states of up to 500: a noise level of diffusers' is from a product of 1,000 floats."""
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(
            mine, other, rtol=2e-5, atol=1e-3, msg=lambda text, step=step: f"step {step}: {text}"
        )


def differ(ours: Tensor, theirs: list[Tensor]) -> None:
    """By ten times the tolerance somewhere: the comparison can tell the two apart."""
    assert max((mine - other).abs().max() for mine, other in zip(ours, theirs, strict=True)) > 1e-2


# ---- DDPM and DDIM on DDPM's own process


def discrete(target: str = "epsilon", schedule: Any = "linear") -> Denoiser:
    sde = DiscreteVPSDE(GRID, schedule=schedule)
    parameterization = NoisePrediction() if target == "epsilon" else VelocityPrediction()
    return NetworkDenoiser(ExactNetwork(sde, target), sde, parameterization)


def walk(scheduler: Any, network: nn.Module, x: Tensor, seed: int = 0, **step: Any) -> list[Tensor]:
    """diffusers' loop over its integer timesteps i, which are our times (i + 1)/N."""
    frames, draws = [x], generator(seed)
    for i in scheduler.timesteps:
        output = network(x, torch.full((len(x),), (int(i) + 1) / GRID))
        x = scheduler.step(output, int(i), x, generator=draws, **step).prev_sample
        frames.append(x)
    return frames


@pytest.mark.parametrize(("schedule", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_the_betas_are_the_same(schedule: Any, name: str) -> None:
    scheduler = DDPMScheduler(GRID, beta_schedule=name)
    sde = DiscreteVPSDE(GRID, schedule=schedule)
    torch.testing.assert_close(sde.betas.float(), scheduler.betas, rtol=1e-5, atol=1e-7)
    assert sde.times is not None
    alphas = sde.alpha(sde.times.double()) ** 2
    torch.testing.assert_close(alphas.float(), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("target", "steps"), [("epsilon", 400), ("epsilon", 50), ("v_prediction", 50)])
@pytest.mark.parametrize(("variance", "name"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
def test_ddpm(steps: int, target: str, variance: Any, name: str) -> None:
    """With diffusers' spacing ``linspace``, which is from the first to the last time, rounded, as ours.

    All 1,000 steps are compared by DDIM, with noise.
    """
    scheduler = DDPMScheduler(
        GRID, variance_type=name, prediction_type=target, timestep_spacing="linspace", **NO_CLIPPING
    )
    scheduler.set_timesteps(steps)
    denoiser = discrete(target)
    x = torch.randn(SHAPE, generator=generator(1))
    frames = ours(DDPM(steps, variance), denoiser, x)
    theirs = walk(scheduler, denoiser.network, x)
    agree(frames, theirs)
    if steps == 50:
        differ(ours(DDPM(steps, "beta" if variance == "posterior" else "posterior"), denoiser, x), theirs)


def test_ddpm_on_the_cosine_schedule() -> None:
    scheduler = DDPMScheduler(GRID, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace", **NO_CLIPPING)
    scheduler.set_timesteps(100)
    denoiser = discrete(schedule="cosine")
    x = torch.randn(SHAPE, generator=generator(1))
    agree(ours(DDPM(100), denoiser, x), walk(scheduler, denoiser.network, x))


@pytest.mark.parametrize(
    ("stride", "eta", "target"),
    [(1, 0.4, "epsilon")]
    + [(s, eta, target) for s in (27, 37) for eta in (0.0, 0.4, 1.0) for target in ("epsilon", "v_prediction")],
)
def test_ddim(stride: int, eta: float, target: str) -> None:
    """diffusers steps from i to i − N//steps, so the grids must be regular: strides that divide N − 1 = 999."""
    scheduler = DDIMScheduler(GRID, prediction_type=target, **NO_CLIPPING)
    scheduler.set_timesteps(GRID // stride)
    assert scheduler.config.num_train_timesteps // scheduler.num_inference_steps == stride
    scheduler.timesteps = torch.arange(GRID - 1, -1, -stride)  # from the last to the first, which its own leave out
    denoiser = discrete(target)
    x = torch.randn(SHAPE, generator=generator(1))
    frames = ours(DDIM(len(scheduler.timesteps), eta), denoiser, x)
    theirs = walk(scheduler, denoiser.network, x, eta=eta)
    agree(frames, theirs)
    if stride > 1:
        differ(ours(DDIM(len(scheduler.timesteps), 0.7), denoiser, x), theirs)


def test_on_an_irregular_grid_ddim_differs_by_where_diffusers_steps_to() -> None:
    """With 50 steps from 999 to 0, 20.4 apart, diffusers steps 20 down each time, and goes on from elsewhere.

    Its trajectory is that of our step from i to i − 20, taken at the times of the grid.
    """
    scheduler = DDIMScheduler(GRID, timestep_spacing="linspace", **NO_CLIPPING)
    scheduler.set_timesteps(50)
    denoiser, sampler = discrete(), DDIM(50)
    sde = denoiser.sde
    x = torch.randn(SHAPE, generator=generator(1))
    theirs = walk(scheduler, denoiser.network, x)
    frames = ours(sampler, denoiser, x)
    differ(frames, theirs)
    explained = [x]
    for i in scheduler.timesteps.tolist():
        t, s = (torch.full((len(x),), (j + 1) / GRID) for j in (i, i - 20))
        x0 = denoiser.denoise(explained[-1], t)
        explained.append(x0 if i < 20 else sampler.step(sde, explained[-1], x0, t, s)[0])
    agree(torch.stack(explained), theirs)


# ---- samplers in the noise level


def equivalent(name: str) -> SDE:
    """DDPM's process, or EDM's between the same noise levels."""
    sde = DiscreteVPSDE(GRID)
    if name == "ddpm":
        return sde
    lowest, highest = sde.noise_level(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).tolist()
    return KarrasSDE(lowest, highest)


def scales(sde: SDE, levels: Tensor) -> Tensor:
    """α at the noise levels, 1 at level 0, ``(n, 1, 1)``."""
    alpha = [1.0 if level == 0 else sde.alpha(sde.time_at(level.double())).item() for level in levels]
    return torch.tensor(alpha)[:, None, None]


def noise_of(sde: SDE, x: Tensor, level: Tensor) -> Tensor:
    """E[z] for x̃ = x/α at a noise level, exact."""
    t = sde.time_at(level.double()).clamp(sde.t_min, sde.T).expand(len(x))
    return exact(sde).noise(sde.alpha(t)[:, None] * x.double(), t).to(x)


@pytest.mark.parametrize("name", ["ddpm", "karras"])
@pytest.mark.parametrize("steps", [2, 3, 18])
def test_heun(name: str, steps: int) -> None:
    """HeunDiscreteScheduler works in x/α; its Karras sigmas run between the noise levels of its betas."""
    sde = equivalent(name)
    scheduler = HeunDiscreteScheduler(GRID, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    levels = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    start = levels[0] * torch.randn(SHAPE, generator=generator(1))
    x, theirs = start, [start]
    for i in range(len(scheduler.timesteps)):
        # the sigma that the evaluation is at: of a step's two, its start's and its end's
        x = scheduler.step(noise_of(sde, x, scheduler.sigmas[i]), scheduler.timesteps[i], x).prev_sample
        if i % 2 == 1 or i == len(scheduler.timesteps) - 1:
            theirs.append(x)
    scale = scales(sde, levels)
    frames = ours(Heun(steps), exact(sde), scale[0] * start) / scale
    agree(frames.float(), theirs)


@pytest.mark.parametrize("sampler", [DPMSolverPlusPlus(20, order=1), DDIM(20)], ids=["dpm-solver++, 1", "ddim"])
def test_euler_is_first_order_dpm_solver_and_ddim_on_edm_s_process(sampler: Sampler) -> None:
    sde = KarrasSDE()
    levels = DPMSolverPlusPlus(20, order=1).levels(sde)
    scheduler = EulerDiscreteScheduler(GRID, final_sigmas_type="zero")
    scheduler.set_timesteps(sigmas=[*levels, 0.0])
    scheduler.set_begin_index(0)
    start = 80 * torch.randn(SHAPE, generator=generator(1))
    x, theirs = start, [start]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(noise_of(sde, x, scheduler.sigmas[i]), t, x).prev_sample
        theirs.append(x)
    agree(ours(sampler, exact(sde), start).float(), theirs)


class HalfCurvature(DPMSolverPlusPlus):
    """Order 3 as the authors' code has it: the parabola's curvature counts half (see DPMSolverPlusPlus)."""

    @staticmethod
    def _integral(known: list[tuple[float, Tensor]], h: float) -> Tensor:
        whole = DPMSolverPlusPlus._integral(known, h)
        if len(known) < 3:
            return whole
        (l0, d0), (l1, d1), (l2, d2) = known
        curvature = ((d0 - d1) / (l0 - l1) - (d1 - d2) / (l1 - l2)) / (l0 - l2)
        square = h**2 - 2 * (h + math.expm1(-h))
        return whole - square / 2 * curvature


SOLVERS: dict[str, tuple[int, Callable[[int], Sampler]]] = {
    "1": (1, lambda steps: DPMSolverPlusPlus(steps, order=1)),
    "2": (2, lambda steps: DPMSolverPlusPlus(steps, order=2)),
    "3, half the curvature": (3, lambda steps: HalfCurvature(steps, order=3)),
}


@pytest.mark.parametrize("name", ["ddpm", "karras"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_dpm_solver(name: str, solver: str) -> None:
    """In x itself on DDPM's process. Its rounding of timesteps to integers meets the network alone, which is exact.

    20 steps: below 15 diffusers lowers the order of the last two of order 3.
    """
    order, build = SOLVERS[solver]
    sde = equivalent(name)
    scheduler = DPMSolverMultistepScheduler(GRID, solver_order=order, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(0)
    start = torch.randn(SHAPE, generator=generator(1))
    x, theirs = start, [start]
    for i, t in enumerate(scheduler.timesteps):
        alpha = (1 + scheduler.sigmas[i] ** 2) ** -0.5
        x = scheduler.step(noise_of(sde, x / alpha, scheduler.sigmas[i]), t, x).prev_sample
        theirs.append(x)
    theirs_scale = ((1 + scheduler.sigmas**2) ** -0.5)[:, None, None]
    scale = scales(sde, scheduler.sigmas) / theirs_scale  # 1 on DDPM's process
    frames = ours(build(20), exact(sde), scale[0] * start) / scale
    agree(frames.float(), theirs)
    if order == 3:
        assert not torch.equal(ours(DPMSolverPlusPlus(20, order=3), exact(sde), scale[0] * start) / scale, frames)
    else:
        differ(ours(DPMSolverPlusPlus(20, order=3 - order), exact(sde), scale[0] * start) / scale, theirs)


EDM: dict[str, tuple[Callable[..., Any], Callable[[int], Sampler]]] = {
    "euler": (EDMEulerScheduler, SOLVERS["1"][1]),
    **{
        f"dpm-solver++, {name}": (
            lambda order=order, **kw: EDMDPMSolverMultistepScheduler(solver_order=order, **kw),
            build,
        )
        for name, (order, build) in SOLVERS.items()
    },
}


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("kind", EDM)
def test_edm(kind: str, sigma_data: float) -> None:
    """The same network of EDM's under both preconditionings: c_skip, c_out, c_in and c_noise are compared as well."""
    make, build = EDM[kind]
    network = ExactEDMNetwork(sigma_data)
    scheduler = make(sigma_data=sigma_data)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(0)
    start = 80 * torch.randn(SHAPE, generator=generator(1))
    x, theirs = start, [start]
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x).prev_sample
        theirs.append(x)
    denoiser = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning(sigma_data))
    agree(ours(build(20), denoiser, start), theirs)
    if kind != "euler":
        differ(ours(Heun(20), denoiser, start), theirs)


def test_heun_from_edm_euler_s_steps() -> None:
    """Heun's step is the mean of two Euler steps of the same length, with the slopes of its two ends (algorithm 1)."""
    sigma_data, steps = 0.5, 18
    network = ExactEDMNetwork(sigma_data)
    scheduler = EDMEulerScheduler(sigma_data=sigma_data)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    sigmas = scheduler.sigmas
    start = 80 * torch.randn(SHAPE, generator=generator(1))
    x, theirs = start, [start]
    for i, t in enumerate(scheduler.timesteps):
        euler = scheduler.step(network(scheduler.scale_model_input(x, t), t.expand(len(x))), t, x)
        if i < steps - 1:
            after = scheduler.timesteps[i + 1]
            scaled = scheduler.precondition_inputs(euler.prev_sample, sigmas[i + 1])
            output = network(scaled, after.expand(len(x)))
            denoised = scheduler.precondition_outputs(euler.prev_sample, output, sigmas[i + 1])
            slope = (euler.prev_sample - denoised) / sigmas[i + 1]
            x = (euler.prev_sample + x + (sigmas[i + 1] - sigmas[i]) * slope) / 2
        else:
            x = euler.prev_sample
        theirs.append(x)
    denoiser = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning(sigma_data))
    agree(ours(Heun(steps), denoiser, start), theirs)
