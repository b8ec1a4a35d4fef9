"""Every sampler on every process that it fits, with the exact denoiser of a mixture: one table, one law.

Nothing is allowed for what a sampler does with too few steps: each has enough of them that its own error is below
chance, and the bounds are those of chance alone, five standard errors of what is estimated from n draws.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from exact_models import ALL_SDES, MEANS, STDS, WEIGHTS, generator, mixture
from torch import Tensor

from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein
from diffusion_lightning.samplers import (
    DDIM,
    DDPM,
    AncestralPredictor,
    AnnealedLangevin,
    DPMSolverPlusPlus,
    EulerMaruyama,
    Heun,
    LangevinCorrector,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseDiffusionPredictor,
    Sampler,
)
from diffusion_lightning.sde import SDE

N, SCALE = 1000, 1.5


def annealed_langevin(sde: SDE) -> Sampler:
    """Levels close together and, at each, steps of 0.2·σ̃² enough to follow: the weights come from the largest ones."""
    lowest = torch.tensor(0.05, dtype=torch.float64)
    t_min = None if sde.times is not None else sde.time_at(lowest).item()
    smallest = sde.noise_level(torch.tensor(t_min or sde.t_min, dtype=torch.float64)).item()
    return AnnealedLangevin(steps_per_scale=12, step_size=0.2 * smallest**2, scales=50, t_min=t_min)


SAMPLERS: dict[str, Callable[[SDE], Sampler]] = {
    "euler-maruyama": lambda sde: EulerMaruyama(120),
    "reverse diffusion, langevin": lambda sde: PredictorCorrector(
        100, ReverseDiffusionPredictor(), LangevinCorrector()
    ),
    "ancestral": lambda sde: PredictorCorrector(120, AncestralPredictor(), None),
    "heun": lambda sde: Heun(40),
    "heun, churn": lambda sde: Heun(40, churn=10.0),
    "dopri5": lambda sde: ProbabilityFlowODE(rtol=1e-3, atol=1e-3),
    "midpoint": lambda sde: ProbabilityFlowODE("midpoint", steps=60),
    "annealed langevin": annealed_langevin,
    "ddpm": lambda sde: DDPM(120),
    "ddpm, beta": lambda sde: DDPM(120, "beta"),
    "ddim": lambda sde: DDIM(80),
    "ddim, noisy": lambda sde: DDIM(80, eta=0.7),
    "dpm-solver++ 1": lambda sde: DPMSolverPlusPlus(160, order=1),
    "dpm-solver++ 2": lambda sde: DPMSolverPlusPlus(40, order=2),
    "dpm-solver++ 3": lambda sde: DPMSolverPlusPlus(40, order=3),
}


def truth(seed: int) -> Tensor:
    return mixture(ALL_SDES["vp"], SCALE).sample_data(N, generator(seed))


def distance(x: Tensor, y: Tensor) -> float:
    return sliced_wasserstein(x, y, projections=64, generator=generator())


@functools.cache
def chance() -> tuple[float, float]:
    """Mean and standard deviation of the distance between two independent sets of true samples."""
    distances = torch.tensor([distance(truth(100 + 2 * i), truth(101 + 2 * i)) for i in range(30)])
    return distances.mean().item(), distances.std().item()


def check(x: Tensor, seed: int) -> None:
    assert x.isfinite().all()
    # weights: of the nearest mean, which are five stds and more apart
    weights = torch.bincount(torch.cdist(x, MEANS).argmin(1), minlength=3) / N
    assert ((weights - WEIGHTS).abs() < 5 * (WEIGHTS * (1 - WEIGHTS) / N).sqrt()).all()
    # mean and covariance of the whole; the standard error of a covariance from those of the products in a true set
    mean = WEIGHTS @ MEANS
    spread = MEANS - mean
    covariance = spread.T @ (WEIGHTS[:, None] * spread) + (WEIGHTS * (SCALE * STDS) ** 2).sum() * torch.eye(2)
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diag() / N).sqrt()).all()
    true = truth(seed) - mean
    error = (true[:, :, None] * true[:, None]).std(0) / math.sqrt(N)
    assert ((x.T.cov() - covariance).abs() < 5 * error).all()
    average, deviation = chance()
    assert distance(x, truth(seed)) < average + 5 * deviation


def test_the_bounds_tell_a_wrong_sample_from_a_right_one() -> None:
    for seed in range(5):
        check(truth(20 + seed), seed)
    right = truth(20)
    swapped = mixture(ALL_SDES["vp"], SCALE)
    swapped.weights = WEIGHTS[[2, 1, 0]]
    wrong = {"moved": right + 0.25, "wide": 1.3 * right, "collapsed": right[:1].expand(N, 2), "turned": right.flip(1)}
    for x in (*wrong.values(), swapped.sample_data(N, generator(20))):
        with pytest.raises(AssertionError):
            check(x, 0)


@pytest.mark.parametrize("name", ALL_SDES)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_draws_from_the_data_on_every_process(kind: str, name: str) -> None:
    sde = ALL_SDES[name]
    check(SAMPLERS[kind](sde)(mixture(sde, SCALE), (N, 2), generator=generator(1)), seed=2)
