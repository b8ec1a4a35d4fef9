"""FID of infinitely many samples: of Gaussian features, whose distance is known, and its bias to leading order."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lightning import Reference, evaluate
from diffusion_lightning.metrics.evaluation import frechet_distance
from diffusion_lightning.metrics.extrapolation import MOST_PARTS, infinite_frechet_distance, least_samples
from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.randomness import draw_some

SHIFT, STRETCH = 0.2, torch.arange(1, 9, dtype=torch.float64) / 4
REAL = Moments(torch.zeros(8, dtype=torch.float64), torch.diag((STRETCH + 0.2).square()))
DISTANCE = 8 * (SHIFT**2 + 0.2**2)
N, DRAWS = 160, 60


def samples(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SHIFT + STRETCH * torch.randn(N, 8, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def measured() -> Tensor:
    """Of each of many draws the plain distance, the extrapolated one, and its error; ``(DRAWS, 3)``."""
    drawn = [samples(seed) for seed in range(DRAWS)]
    return torch.tensor([[frechet_distance(x, REAL), *infinite_frechet_distance(x, REAL)] for x in drawn])


def test_the_plain_distance_is_too_large_by_what_theory_says(measured):
    """tr Σ / n + (Σᵢⱼ √λᵢ√λⱼ / (√λᵢ + √λⱼ) + ½ Σ √λᵢ) / 2n, to leading order."""
    roots = STRETCH * REAL.covariance.diagonal().sqrt()
    pairs = roots[:, None] * roots / (roots[:, None] + roots)
    bias = (STRETCH.square().sum() + (pairs.sum() + roots.sum() / 2) / 2).item() / N
    plain = measured[:, 0]
    error = plain.std().item() / DRAWS**0.5
    assert plain.mean().item() - DISTANCE == pytest.approx(bias, abs=4 * error)
    assert bias > 5 * error


def test_the_extrapolated_one_is_right_within_its_own_error(measured):
    found, errors = measured[:, 1], measured[:, 2]
    assert found.mean().item() == pytest.approx(DISTANCE, abs=4 * found.std().item() / DRAWS**0.5)
    # the errors that it states are those that it makes, or somewhat more
    assert 0.9 < errors.square().mean().sqrt().item() / found.std().item() < 1.5
    assert 0.6 < ((found - DISTANCE).abs() < errors).double().mean().item() < 0.9


def test_it_is_the_lines_value_at_0():
    """Of the mean distances of N/k samples, k = 1 … 4; here by the least squares of another library's."""
    x, order = samples(0), draw_some(N, N, seed=3)
    points = []
    for count in range(1, MOST_PARTS + 1):
        size = N // count
        parts = [x[order[first : first + size]] for first in range(0, count * size, size)]
        points.append((1 / size, sum(frechet_distance(part, REAL) for part in parts) / count))
    assert infinite_frechet_distance(x, REAL, seed=3)[0] == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[1])
    assert infinite_frechet_distance(x, REAL, seed=4)[0] != infinite_frechet_distance(x, REAL, seed=3)[0]


def test_among_the_scores_where_it_is_asked_for():
    x = samples(0)
    with_it = evaluate(x, Reference("those", REAL), ["fid"], extrapolate=True, seed=3)
    value, error = infinite_frechet_distance(x, REAL, seed=3)
    assert with_it.values == {"fid": frechet_distance(x, REAL), "fid_infinity": value, "fid_infinity_error": error}
    assert evaluate(x, Reference("those", REAL), ["fid"], seed=3).values.keys() == {"fid"}


def test_too_few_samples_are_refused():
    assert least_samples(8) == 36
    infinite_frechet_distance(samples(0)[:36], REAL)
    line = "35 samples: must be at least 36 to extrapolate FID, 4 parts of more samples than the 8 features"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        infinite_frechet_distance(samples(0)[:35], REAL)
