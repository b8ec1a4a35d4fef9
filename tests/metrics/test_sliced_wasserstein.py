import math

import pytest
import torch

from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein


def points(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def distance(x: torch.Tensor, y: torch.Tensor, projections: int = 64, seed: int = 0) -> float:
    return sliced_wasserstein(x, y, projections, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_of_a_moved_copy(dim):
    # the mean of ⟨θ, v⟩² over directions is ‖v‖²/D; 20,000 of them leave an error below a percent or two
    x, shift = points(50, dim), torch.arange(1.0, dim + 1)
    moved = (x + shift)[torch.randperm(50)]
    assert distance(x, moved, 20_000) == pytest.approx(shift.norm().item() / math.sqrt(dim), rel=0.02)


def test_of_two_gaussians_is_the_difference_of_their_standard_deviations():
    # in each direction W₂(N(0, a²), N(0, b²)) = |a − b|
    assert distance(points(20_000, 3, 1), 2.5 * points(20_000, 3, 2), 32) == pytest.approx(1.5, rel=0.02)


def test_of_a_permutation_is_zero():
    x = points(100, 3)
    assert distance(x, x[torch.randperm(100)]) == 0


def test_is_symmetric_and_scales_linearly():
    x, y = points(100, 2, 1), points(100, 2, 2) + 1
    assert distance(x, y) == distance(y, x)
    assert distance(3 * x, 3 * y) == pytest.approx(3 * distance(x, y), rel=1e-6)


def test_in_double_precision():
    x = points(100, 2).double()
    assert distance(x, x + 1e-9) == pytest.approx(1e-9 * distance(x, x + 1), rel=1e-4)


def test_the_generator_decides_the_directions():
    x, y = points(30, 2, 1), points(30, 2, 2)
    before = torch.get_rng_state()
    assert distance(x, y, seed=1) == distance(x, y, seed=1) != distance(x, y, seed=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("first", "second"), [((3, 2), (4, 2)), ((3, 2), (3, 1)), ((3,), (3,)), ((0, 2), (0, 2))])
def test_other_shapes_are_refused(first, second):
    with pytest.raises(ValueError, match=r"x, y: shapes .* given, but both must be \(N, D\)"):
        sliced_wasserstein(torch.zeros(first), torch.zeros(second))


def test_bad_values_are_refused():
    x, bad = torch.zeros(2, 2), torch.tensor([[0.0, math.nan], [math.inf, 0.0]])
    with pytest.raises(ValueError, match="y holds NaN or infinite values"):
        sliced_wasserstein(x, bad)
    with pytest.raises(ValueError, match="x holds NaN or infinite values"):
        sliced_wasserstein(bad, x)
    with pytest.raises(ValueError, match="projections=0: must be at least 1"):
        sliced_wasserstein(x, x, 0)
