"""How long 64 digits take to be filled in, beside azula: ΠGDM in eight steps, the same network, in turns.

    python benchmarks/inverse_speed.py

Ours is ``restore`` by DPM-Solver++ through ``PGDM``, theirs ``PGDMSampler``, a DDIM sampler. Each step of both is one
forward pass and one vector–Jacobian product. The network is that of ``configs/mnist.yaml``, untrained: what it answers
makes no difference. Each turn of ours is compared with the mean of azula's before and after it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.pgdm import PGDMSampler
from results import machine, table, write
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning import (
    PGDM,
    DPMSolverPlusPlus,
    Inpainting,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    UNet,
    restore,
)

DIGITS, STEPS, GOAL = 64, 8, 1.0


class Theirs(Denoiser):
    """Our denoiser as azula has them, in the times of KarrasSDE from 0 to 1."""

    def __init__(self, ours: NetworkDenoiser) -> None:
        super().__init__()
        self.ours = ours

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = 0.002 * (80 / 0.002) ** t
        return torch.ones_like(t), sigma

    def forward(self, x_t: Tensor, t: Tensor, **cond: object) -> DiracPosterior:
        sigma = self.schedule(t)[1]
        return DiracPosterior(mean=self.ours.denoise(x_t, sigma.expand(len(x_t))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = UNet(1, channels=[32, 64], num_res_blocks=1, patch_size=2, time_embedding="fourier", time_scale=1.0)
    denoiser = NetworkDenoiser(network.eval(), KarrasSDE(), KarrasPreconditioning())
    operator = Inpainting(torch.arange(28)[:, None] < 14)
    y = operator(torch.randn(DIGITS, 1, 28, 28))
    sampler = DPMSolverPlusPlus(STEPS)
    theirs = PGDMSampler(Theirs(denoiser), y, operator, operator.adjoint, steps=STEPS, silent=True)

    def of_ours() -> None:
        restore(denoiser, y, operator, PGDM, 1, sampler, batch_size=DIGITS)

    def of_theirs() -> None:
        theirs(80 * torch.randn(DIGITS, 1, 28, 28))

    before, ratios = (timed(of_ours), timed(of_theirs))[1], []
    for _ in tqdm(range(options.turns), desc="turns"):
        ours, after = timed(of_ours), timed(of_theirs)
        ratios.append(2 * ours / (before + after))
        before = after
    ratio = statistics.median(ratios)
    results = {"ratios": ratios, "median": ratio, "goal": GOAL, "machine": machine()}
    rows = [[f"{DIGITS} digits, {STEPS} steps of ΠGDM", f"{ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f})", GOAL]]
    text = table(["seconds of ours over azula's", "median (range)", "goal"], rows)
    doc = "Ours by DPM-Solver++ through `PGDM`, azula's by its `PGDMSampler`, the same network, in turns."
    write("inverse_speed", results, f"# Filling in digits, beside azula\n\n{text}\n\n{doc}\n\n{results['machine']}\n")


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
