"""Every sampler on every process, with the exact denoiser of a mixture, draws from that mixture.

The bounds are five standard errors of what is estimated from n draws, plus the error that the sampler itself makes at
this number of steps: measured once with many more draws, and vanishing as the steps grow. The exact laws of the
discrete algorithms, which need no such allowance, are tested in test_sampler_gaussian.py.
"""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from exact_models import CORRECTORS, MEANS, PREDICTORS, SDES, STDS, WEIGHTS, generator, mixture
from torch import Tensor

from diffusion_lightning.samplers import EulerMaruyama, Heun, PredictorCorrector, ProbabilityFlowODE, Sampler
from diffusion_lightning.sde import SDE

STEPS = {"power": 250, "ve": 100, "vp": 150, "subvp": 120, "karras": 100}
N = 4000


class Law(NamedTuple):
    """Of a sample: the weights, and around the means the covariances, of its components."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    component: Tensor


def law(x: Tensor, means: Tensor) -> Law:
    component = torch.cdist(x, means).argmin(1)
    parts = [x[component == k] for k in range(len(means))]
    return Law(
        torch.tensor([len(part) / len(x) for part in parts]),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([part.T.cov() for part in parts]),
        component,
    )


def expected_law(sde: SDE, t: float, denoised: bool) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the components of p_t, or of D(x_t, t), of which none are any longer at t."""
    time = torch.tensor([t])
    alpha, variance = sde.alpha(time), (sde.alpha(time) * STDS) ** 2 + sde.sigma(time) ** 2
    if denoised:
        return MEANS, alpha * STDS**2 / variance.sqrt()
    return alpha * MEANS, variance.sqrt()


def check(x: Tensor, means: Tensor, stds: Tensor, *, of_std: float, of_mean: float, of_weight: float) -> None:
    """Compare a sample with the law, given the sampler's own error: relative of std, in stds of mean, of weight."""
    n = len(x)
    assert x.isfinite().all()
    found = law(x, means)
    counts = n * WEIGHTS
    assert ((found.weights - WEIGHTS).abs() < 5 * (WEIGHTS * (1 - WEIGHTS) / n).sqrt() + of_weight).all()
    for k in range(3):
        standard_error = 1 / counts[k] ** 0.5
        assert ((found.means[k] - means[k]).abs() < stds[k] * (5 * standard_error + of_mean)).all()
        # a covariance matrix in units of the variance: 1, 0, 0, 1, of standard errors √2 on and 1 off the diagonal
        covariance = found.covariances[k] / stds[k] ** 2
        assert (covariance.diag().sqrt() - 1).abs().max() < 5 / math.sqrt(2) * standard_error + of_std
        assert covariance[0, 1].abs() < (5 * standard_error) * (1 + of_std) ** 2
    # all components together, each in units of its own std
    pooled = ((x - means[found.component]) / stds[found.component, None]).pow(2).mean().sqrt()
    assert abs(pooled - 1) < 5 / math.sqrt(4 * n) + of_std
    # and the whole: mean and covariance of the mixture, with errors in the weights carried over
    mean = (WEIGHTS[:, None] * means).sum(0)
    spread = means - mean
    covariance = spread.T @ (WEIGHTS[:, None] * spread) + (WEIGHTS * stds**2).sum() * torch.eye(2)
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diag() / n).sqrt() + 3 * of_weight).all()
    assert (
        (x.T.cov() - covariance).abs() < 5 * math.sqrt(2 / n) * covariance.diag().max() + 3 * of_weight + 0.01
    ).all()


every_sde = pytest.mark.parametrize("name", SDES)


@every_sde
def test_euler_maruyama(name: str) -> None:
    x = EulerMaruyama(STEPS[name])(mixture(SDES[name]), (N, 2), generator=generator(1))
    of_std = {"power": 0.15, "ve": 0.03, "vp": 0.1, "subvp": 0.03, "karras": 0.05}[name]
    check(x, *expected_law(SDES[name], SDES[name].t_min, False), of_std=of_std, of_mean=0.02, of_weight=0.005)


# relative error of the smallest component's std at the numbers of steps above: power, ve, vp, subvp, karras
STD_ERRORS = {
    ("euler", "langevin"): (0.17, 0.05, 0.12, 0.03, 0.05),
    ("euler", "annealed"): (0.16, 0.03, 0.11, 0.03, 0.05),
    ("euler", "none"): (0.15, 0.03, 0.10, 0.03, 0.05),
    ("reverse", "langevin"): (0.17, 0.05, 0.03, 0.04, 0.05),
    ("reverse", "annealed"): (0.16, 0.03, 0.04, 0.05, 0.08),
    ("reverse", "none"): (0.14, 0.05, 0.05, 0.08, 0.10),
    ("ancestral", "langevin"): (0.27, 0.05, 0.15, 0.04, 0.05),
    ("ancestral", "annealed"): (0.28, 0.04, 0.20, 0.10, 0.08),
    ("ancestral", "none"): (0.28, 0.05, 0.20, 0.10, 0.09),
    ("none", "langevin"): (0.30, 0.13, 0.27, 0.14, 0.14),
    ("none", "annealed"): (0.08, 0.06, 0.17, 0.15, 0.09),
}


# every predictor and corrector with every process, and with each other; all three together: test_sampler_gaussian.py
@pytest.mark.parametrize(
    ("name", "predictor", "corrector"),
    [
        (name, predictor, corrector)
        for (i, name), (j, predictor), (k, corrector) in itertools.product(
            *map(enumerate, (SDES, PREDICTORS, CORRECTORS))
        )
        if predictor != "none" and (i + j + k) % len(CORRECTORS) == 0
    ],
)
def test_predictor_corrector(name: str, predictor: str, corrector: str) -> None:
    sde = SDES[name]
    sampler = PredictorCorrector(STEPS[name], PREDICTORS[predictor], CORRECTORS[corrector])
    x = sampler(mixture(sde), (N, 2), generator=generator(1))
    of_std = dict(zip(SDES, STD_ERRORS[predictor, corrector], strict=True))[name]
    check(x, *expected_law(sde, sde.t_min, False), of_std=of_std, of_mean=0.02, of_weight=0.012)


@every_sde
@pytest.mark.parametrize("corrector", ["langevin", "annealed"])
def test_corrector_alone(name: str, corrector: str) -> None:
    """Annealed Langevin dynamics, which keeps up with the falling noise level only if it takes several steps at each.

    The last level that it corrects at is the last but one of the grid.
    """
    sde = SDES[name]
    settings = {"langevin": {"corrector_steps": 4, "snr": 0.2}, "annealed": {"corrector_steps": 4, "snr": 0.4}}
    sampler = PredictorCorrector(120, None, CORRECTORS[corrector], **settings[corrector])  # type: ignore[arg-type]
    x = sampler(mixture(sde), (N, 2), generator=generator(1))
    of_std = dict(zip(SDES, STD_ERRORS["none", corrector], strict=True))[name]
    of_mean = {"vp": 0.15, "subvp": 0.35}.get(name, 0.05)
    last = sde.timesteps(120)[-2].item()
    check(x, *expected_law(sde, last, False), of_std=of_std, of_mean=of_mean, of_weight=0.03)


@every_sde
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "midpoint"])
def test_probability_flow(name: str, method: str) -> None:
    """Adaptive and fixed steps; the sampler's own error is far below that of chance."""
    sde = SDES[name]
    sampler = ProbabilityFlowODE(method, rtol=1e-4, atol=1e-4, steps=STEPS[name])  # type: ignore[arg-type]
    x = sampler(mixture(sde), (N, 2), generator=generator(1))
    check(x, *expected_law(sde, sde.t_min, True), of_std=0.005, of_mean=0.005, of_weight=0.002)


@every_sde
@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_heun(name: str, churn: float) -> None:
    sde = SDES[name]
    sampler: Sampler = Heun(40, churn=churn)
    x = sampler(mixture(sde), (N, 2), generator=generator(1))
    of_std = 0.09 if churn else 0.03
    check(x, *expected_law(sde, sde.t_min, True), of_std=of_std, of_mean=0.15 if churn else 0.06, of_weight=0.005)
