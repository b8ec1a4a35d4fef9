"""How far the answers of each method are from the true posterior, where it is known exactly.

    python benchmarks/inverse.py        # minutes

The data is a mixture of Gaussians, so that the model is exact (``GaussianMixtureDenoiser``), and for a linear
measurement y = A x0 + n so is the posterior: a mixture with the weights w_k N(y; Aμ_k, s_k² AAᵀ + σ_y² I), and each
component's own Gaussian posterior. The distance is the sliced Wasserstein distance (Bonneel et al. 2015) between a
method's answers and as many exact draws; the floor is that between two sets of exact draws. All that is left beyond the
floor is the method's.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, write
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning import (
    DPS,
    MMPS,
    PGDM,
    Downsample,
    DPMSolverPlusPlus,
    GaussianMixtureDenoiser,
    Inpainting,
    KarrasSDE,
    Operator,
    RePaint,
    Replacement,
    TwistedSMC,
    restore,
)

STEPS = (8, 20, 100)

PROJECTIONS = 200

FLOORS = 10
"""Sets of exact draws that the floor is the mean of."""


@dataclass
class Problem:
    """Data, what is measured of it, and how well.

    Attributes:
        name: for the table.
        mixture: the data and its exact denoiser.
        operator: A.
        noise_std: σ_y.
        truth: of which y is measured, ``(1, …)``.
    """

    name: str
    mixture: GaussianMixtureDenoiser
    operator: Operator
    noise_std: float
    truth: Tensor


def points() -> GaussianMixtureDenoiser:
    """Three spots in the plane, two of which have the same first coordinate."""
    means = torch.tensor([[-1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
    return GaussianMixtureDenoiser(means, torch.tensor([0.2, 0.2, 0.3]), torch.tensor([0.6, 0.2, 0.2]), KarrasSDE())


def pictures() -> GaussianMixtureDenoiser:
    """Twelve pictures of 8 × 8 pixels, smooth and random, each with a little of its own variation."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(12, 1, 3, 3, generator=generator)
    means = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear").tanh()
    return GaussianMixtureDenoiser(means, torch.full((12,), 0.15), torch.ones(12), KarrasSDE())


def problems() -> list[Problem]:
    """A coordinate of points, half of a picture, a picture's coarse form, each with three levels of noise."""
    plane, images = points(), pictures()
    first, half = Inpainting(torch.tensor([True, False])), Inpainting(torch.arange(8)[:, None] < 3)
    made = []
    for noise_std, noise in ((0.0, "no noise"), (0.05, "σ_y = 0.05"), (0.5, "σ_y = 0.5")):
        seen = torch.tensor([[-0.9, 0.8]])
        made.append(Problem(f"one of two coordinates, {noise}", plane, first, noise_std, seen))
        made.append(Problem(f"three of eight rows, {noise}", images, half, noise_std, images.means[:1]))
        made.append(Problem(f"4 × 4 → 1, {noise}", images, Downsample(4), noise_std, images.means[:1]))
    return made


Method = Callable[..., Any]


def methods(steps: int) -> dict[str, Method]:
    """Every method at so many steps; those that are denoisers in DPM-Solver++."""
    return {
        "MMPS": partial(MMPS, iterations=3),
        "PGDM": PGDM,
        "DPS": DPS,
        "Replacement": Replacement,
        "RePaint": partial(RePaint, steps=steps),
        "TwistedSMC": partial(TwistedSMC, steps=steps, particles=16),
    }


def exact_posterior(problem: Problem, y: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draws of p(x0 | y), flat ``(num, D)``, in double precision.

    Without noise σ_y is 10⁻⁴: far below everything that is compared.
    """
    mixture, noise_std = problem.mixture, max(problem.noise_std, 1e-4)
    means = mixture.means.flatten(1).double()
    shape = mixture.means.shape[1:]
    dimension = means.shape[1]
    matrix = problem.operator(torch.eye(dimension).reshape(dimension, *shape)).flatten(1).double().T
    seen = matrix.abs().sum(1) > 0  # what a mask has left out says nothing
    matrix, given = matrix[seen], y.flatten().double()[seen]
    eye, small = torch.eye(dimension).double(), torch.eye(len(matrix)).double()
    log_weights, centres, factors = [], [], []
    for mean, std, weight in zip(means, mixture.stds.double(), mixture.weights.double(), strict=True):
        covariance = std**2 * matrix @ matrix.T + noise_std**2 * small
        gain = std**2 * matrix.T @ torch.linalg.inv(covariance)
        density = torch.distributions.MultivariateNormal(matrix @ mean, covariance)
        log_weights.append(weight.log() + density.log_prob(given))
        centres.append(mean + gain @ (given - matrix @ mean))
        values, vectors = torch.linalg.eigh(std**2 * (eye - gain @ matrix))
        factors.append(vectors * values.clamp(min=0).sqrt())
    component = torch.multinomial(torch.stack(log_weights).softmax(0), num, replacement=True, generator=generator)
    z = torch.randn(num, dimension, generator=generator, dtype=torch.float64)
    return torch.stack(centres)[component] + torch.einsum("nij,nj->ni", torch.stack(factors)[component], z)


def sliced_wasserstein(x: Tensor, y: Tensor, generator: torch.Generator) -> float:
    """The root mean square over random directions of the 2-Wasserstein distance between two sets of equally many."""
    directions = torch.randn(x.shape[1], PROJECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    a, b = (each.double() @ directions for each in (x, y))
    return (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()


def measure(problem: Problem, num: int, steps: tuple[int, ...], wanted: list[str]) -> dict[str, Any]:
    """The floor of a problem and each method's distance and evaluations, by the number of steps."""
    generator = torch.Generator().manual_seed(0)
    y = problem.operator.measure(problem.truth, problem.noise_std, generator)
    exact = exact_posterior(problem, y, num, generator)
    others = [exact_posterior(problem, y, num, generator) for _ in range(FLOORS)]
    floors = torch.tensor([sliced_wasserstein(exact, other, torch.Generator().manual_seed(2)) for other in others])
    row: dict[str, Any] = {"floor": floors.mean().item(), "floor_std": floors.std().item(), "methods": {}}
    for count in steps:
        for name, method in methods(count).items():
            if name not in wanted:
                continue
            sampler = DPMSolverPlusPlus(count)
            counted = _Counted(problem.mixture)
            draws_itself = name in ("RePaint", "TwistedSMC")
            answers = restore(
                counted,
                y,
                problem.operator,
                method,
                num,
                None if draws_itself else sampler,
                problem.noise_std,
                torch.Generator().manual_seed(1),
                batch_size=num,
            )
            found = row["methods"].setdefault(name, {"distance": [], "evaluations": []})
            distance = sliced_wasserstein(answers.flatten(1), exact, torch.Generator().manual_seed(2))
            found["distance"].append(distance)
            found["evaluations"].append(counted.examples / num if draws_itself else sampler.nfe)
    return row


class _Counted(GaussianMixtureDenoiser):
    """Counts the examples that it is asked about."""

    def __init__(self, inside: GaussianMixtureDenoiser) -> None:
        super().__init__(inside.means, inside.stds, inside.weights, inside.sde)
        self.examples = 0

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.examples += len(x)
        return super().denoise(x, t, **cond)


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    steps = results["steps"]
    lines = [
        "# Inverse problems: how far from the true posterior",
        "",
        "The model is exact, a mixture of Gaussians, and so is the posterior of each problem. The figures are sliced "
        f"Wasserstein distances between {results['num']} answers of a method and as many exact draws, over the floor, "
        f"which is the distance between two sets of exact draws, mean ± standard deviation over {FLOORS}: what is "
        "within that of 1 is as good as can be seen. In each cell: at "
        f"{', '.join(map(str, steps))} steps.",
        "",
        "| problem | floor | " + " | ".join(results["methods"]) + " |",
        "|---|---|" + "---|" * len(results["methods"]),
    ]
    for name, row in results["problems"].items():
        cells = [
            " · ".join(f"{d / row['floor']:.1f}" for d in row["methods"][method]["distance"])
            for method in results["methods"]
        ]
        lines.append(f"| {name} | {row['floor']:.3f} ± {row['floor_std']:.3f} | " + " | ".join(cells) + " |")
    rows = results["problems"].values()
    costs = []
    for method in results["methods"]:
        most = [max(row["methods"][method]["evaluations"][i] for row in rows) for i in range(len(steps))]
        costs.append(" · ".join(f"{evaluations:.0f}" for evaluations in most))
    lines += [
        "| *evaluations an answer* | | " + " | ".join(costs) + " |",
        "",
        "Evaluations are those of the dearest problem: conjugate gradients end early where little is measured. "
        "One is a forward pass or a vector–Jacobian product of the model; TwistedSMC, of 16 particles an "
        "answer, is counted by forward passes, beside which it has as many products.",
        "",
        f"`python benchmarks/inverse.py`, {results['seconds']:.0f} s.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=500, help="answers of each method")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    start = time.perf_counter()
    wanted = [*methods(1)]
    results: dict[str, Any] = {"num": options.num, "steps": STEPS, "methods": wanted, "problems": {}}
    for problem in tqdm(problems(), desc="problems", unit="problem"):
        results["problems"][problem.name] = measure(problem, options.num, STEPS, wanted)
    results["seconds"] = time.perf_counter() - start
    write("inverse", results, page(results), options.results)


if __name__ == "__main__":
    main()
