"""The memory that a whole trajectory takes: 1,000 steps of 64 images of CIFAR-10's size, every state kept.

    python benchmarks/trajectory_memory.py

A fresh process runs a few steps to load and warm up everything, then the trajectory; the figure is how much its peak
memory (ru_maxrss) has grown in between, short of the few MB that the warm-up has freed. The 1,001 frames alone are
1,001·64·3·32·32·4 bytes = 787 MB; the goal is 1 GB. The network is trivial, for the memory of its forward passes is no
matter of the trajectory's length.
"""

import argparse
import resource
import subprocess
import sys

import torch
from torch import Tensor, nn

from diffusion_lightning import VPSDE, EulerMaruyama, NetworkDenoiser, NoisePrediction

GOAL = 1e9


class Trivial(nn.Module):
    """Stands in for a network."""

    def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
        return 0.9 * x


def peak() -> int:
    """Peak memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(steps: int, batch_size: int) -> None:
    """Print the growth of the peak and the size of the frames."""
    shape = (batch_size, 3, 32, 32)
    denoiser = NetworkDenoiser(Trivial(), VPSDE(), NoisePrediction())
    EulerMaruyama(3)(denoiser, shape, trajectory=True)
    before = peak()
    frames = EulerMaruyama(steps)(denoiser, shape, trajectory=True)
    print(peak() - before, frames.numel() * frames.element_size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--measure", action="store_true", help="measure in this process; used by the script itself")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.measure:
        measure(options.steps, options.batch_size)
        return
    arguments = ["--measure", "--steps", str(options.steps), "--batch_size", str(options.batch_size)]
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout
    grown, frames = (int(number) / 1e6 for number in output.split())
    print(
        f"trajectory_memory: {options.steps} steps of {options.batch_size} images: {grown:.0f} MB, "
        f"of which the frames are {frames:.0f} MB; goal below {GOAL / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
