"""What a sampler costs beside its network: its time over NFE × one forward pass.

    python benchmarks/sampler_overhead.py

Each repetition times forward passes before and after the sampler and takes their mean, so that a change of the
machine's speed meets both alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from diffusion_lightning import (
    Denoiser,
    EulerMaruyama,
    Heun,
    PowerVESDE,
    PredictorCorrector,
    ProbabilityFlowODE,
    ScoreNet,
    ScorePrediction,
)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = (options.batch_size, 1, 28, 28)
    network = ScoreNet().eval()
    denoiser = Denoiser(network, PowerVESDE(), ScorePrediction())
    x, t = torch.randn(shape), torch.rand(options.batch_size)
    samplers = {
        "EulerMaruyama": EulerMaruyama(options.steps),
        "PredictorCorrector": PredictorCorrector(options.steps // 2),
        "Heun": Heun(options.steps // 2),
        "Heun, churn": Heun(options.steps // 2, churn=10.0),
        "ProbabilityFlowODE, rk4": ProbabilityFlowODE("rk4", steps=options.steps // 4),
    }

    @torch.no_grad()
    def forwards(n: int) -> None:
        for _ in range(n):
            network(x, t)

    forwards(5)
    for name, sampler in samplers.items():
        sampler(denoiser, shape)  # warm up, and count
        ratios = []
        for _ in range(options.repetitions):
            before = seconds(lambda n=sampler.nfe: forwards(n // 2))
            ours = seconds(lambda s=sampler: s(denoiser, shape))
            after = seconds(lambda n=sampler.nfe: forwards(n - n // 2))
            ratios.append(ours / (before + after))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"sampler_overhead: {name:26s} {sampler.nfe:3d} NFE, ratio {statistics.median(ratios):.3f} ({spread})")
    print("goal at most 1.05")


if __name__ == "__main__":
    main()
