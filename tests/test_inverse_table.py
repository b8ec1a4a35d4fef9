"""The table of inverse problems: its exact posterior is one, and the methods come out as the docs say."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def inverse() -> Iterator[ModuleType]:
    """The benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import inverse

        yield inverse


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_its_posterior_is_the_exact_one(inverse) -> None:
    """Against Bayes' rule by weights on draws of the data: a coordinate of two, seen with much noise."""
    problem = inverse.problems()[6]
    y = torch.tensor([[-0.4, 0.0]])
    drawn = inverse.exact_posterior(problem, y, 20_000, seeded())
    data = problem.mixture.sample_data(200_000, seeded(1)).double()
    weights = torch.softmax(-0.5 * (data[:, 0] + 0.4) ** 2 / problem.noise_std**2, 0)
    mean = weights @ data
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.T.cov(), (weights[:, None] * (data - mean)).T @ (data - mean), rtol=0, atol=0.03)


def test_the_distance_of_two_gaussians(inverse) -> None:
    """Shifted by 3 in one of four dimensions: √E[(3 cos)²] = 3/2 over directions."""
    x = torch.randn(4000, 4, generator=seeded())
    shifted = torch.randn(4000, 4, generator=seeded(1)) + torch.tensor([3.0, 0, 0, 0])
    assert inverse.sliced_wasserstein(x, shifted, seeded(2)) == pytest.approx(1.5, rel=0.1)
    assert inverse.sliced_wasserstein(x, x, seeded(2)) == 0


def test_particles_are_near_the_truth_and_the_biased_are_not(inverse) -> None:
    problem = next(p for p in inverse.problems() if p.name == "three of eight rows, no noise")
    row = inverse.measure(problem, 150, (20,), ["MMPS", "DPS", "Replacement", "TwistedSMC"])
    over = {name: found["distance"][0] / row["floor"] for name, found in row["methods"].items()}
    assert over["TwistedSMC"] < over["MMPS"] < min(over["DPS"], over["Replacement"])
    assert row["methods"]["MMPS"]["evaluations"][0] <= 20 * 5
    results = {"num": 150, "steps": (20,), "methods": list(over), "problems": {problem.name: row}, "seconds": 1.0}
    assert "| three of eight rows, no noise |" in inverse.page(results)
