"""What a sampler costs beside its network: its time over the time of the NFE forward passes within it.

    python benchmarks/sampler_overhead.py

The forward passes are timed where they happen, inside the sampler's own run, so that a change of the machine's speed
meets both sides alike. So are the vector–Jacobian products of the likelihood, from the moment that the gradient reaches
the network's output to the moment that it leaves at the input; there the ratio is to NFE × (forward + product).
The network is a ScoreNet as it is initialized; the adaptive solver's tolerances are loose to keep the run short.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion_lightning import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    DPMSolverPlusPlus,
    EulerMaruyama,
    Heun,
    NetworkDenoiser,
    PowerVESDE,
    PredictorCorrector,
    ProbabilityFlowODE,
    ScoreNet,
    ScorePrediction,
    log_likelihood,
)

FIXED_GOAL, ADAPTIVE_GOAL = 1.05, 1.15
TOLERANCE = 1e-2


class Timed(nn.Module):
    """Adds up the time of a network's forward passes and of the gradients that pass back through it."""

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
        if x.requires_grad:
            output.register_hook(self._arrives)
            x.register_hook(self._leaves)
        return output

    def _arrives(self, gradient: Tensor) -> None:
        self._start = time.perf_counter()

    def _leaves(self, gradient: Tensor) -> None:
        self.seconds += time.perf_counter() - self._start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = (options.batch_size, 1, 28, 28)
    network = Timed(ScoreNet().eval())
    denoiser = NetworkDenoiser(network, PowerVESDE(), ScorePrediction())
    images = torch.rand(shape) * 2 - 1
    steps = options.steps
    samplers = {
        "EulerMaruyama": EulerMaruyama(steps),
        "PredictorCorrector": PredictorCorrector(steps // 2),
        "AnnealedLangevin": AnnealedLangevin(steps // 10, step_size=1e-4, t_min=1e-3),
        "DDPM": DDPM(steps),
        "DDIM": DDIM(steps),
        "Heun": Heun(steps // 2),
        "Heun, churn": Heun(steps // 2, churn=10.0),
        "DPMSolverPlusPlus": DPMSolverPlusPlus(steps),
        "DPMSolverPlusPlus, order 3": DPMSolverPlusPlus(steps, order=3),
        "ProbabilityFlowODE, rk4": ProbabilityFlowODE("rk4", steps=steps // 4),
    }
    ode = ProbabilityFlowODE(rtol=TOLERANCE, atol=TOLERANCE)
    runs: dict[str, tuple[Callable[[], object], float]] = {
        name: (lambda sampler=sampler: sampler(denoiser, shape), FIXED_GOAL) for name, sampler in samplers.items()
    }
    runs["ProbabilityFlowODE, dopri5"] = (lambda: ode(denoiser, shape), ADAPTIVE_GOAL)
    runs["log_likelihood, Hutchinson"] = (
        lambda: log_likelihood(denoiser, images, rtol=TOLERANCE, atol=TOLERANCE),
        ADAPTIVE_GOAL,
    )

    print(f"{'sampler_overhead':28s} {'NFE':>4s}  ratio  (spread)          goal")
    for name, (run, goal) in runs.items():
        run()  # warm up
        ratios = []
        for _ in range(options.repetitions):
            network.seconds, network.calls = 0.0, 0
            start = time.perf_counter()
            run()
            ratios.append((time.perf_counter() - start) / network.seconds)
            sampler = ode if "dopri5" in name else samplers.get(name)
            assert sampler is None or network.calls == sampler.nfe
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:28s} {network.calls:4d}  {statistics.median(ratios):.3f}  {spread}  ≤ {goal}", flush=True)


if __name__ == "__main__":
    main()
