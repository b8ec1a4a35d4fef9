"""What a sampler costs beside its network: its time over the time of the NFE forward passes within it.

    python benchmarks/sampler_overhead.py

The forward passes are timed where they happen, inside the sampler's own run, so that a change of the machine's speed
meets both sides alike.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

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


class Timed(nn.Module):
    """Adds up the time of a network's forward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0
        self.calls = 0

    def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
        start = time.perf_counter()
        output = self.network(x, time_signal)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = (options.batch_size, 1, 28, 28)
    network = Timed(ScoreNet().eval())
    denoiser = Denoiser(network, PowerVESDE(), ScorePrediction())
    samplers = {
        "EulerMaruyama": EulerMaruyama(options.steps),
        "PredictorCorrector": PredictorCorrector(options.steps // 2),
        "Heun": Heun(options.steps // 2),
        "Heun, churn": Heun(options.steps // 2, churn=10.0),
        "ProbabilityFlowODE, rk4": ProbabilityFlowODE("rk4", steps=options.steps // 4),
    }

    for name, sampler in samplers.items():
        sampler(denoiser, shape)  # warm up
        ratios = []
        for _ in range(options.repetitions):
            network.seconds, network.calls = 0.0, 0
            start = time.perf_counter()
            sampler(denoiser, shape)
            ratios.append((time.perf_counter() - start) / network.seconds)
            assert network.calls == sampler.nfe
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"sampler_overhead: {name:26s} {sampler.nfe:3d} NFE, ratio {statistics.median(ratios):.3f} ({spread})")
    print("goal at most 1.05")


if __name__ == "__main__":
    main()
