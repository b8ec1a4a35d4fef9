"""What Lightning, EMA, clipping and logging add to a training step: its time over that of a bare PyTorch loop.

    python benchmarks/step_overhead.py

Both train a ScoreNet on the same batches in one process. A callback runs a few bare steps after every few of
Lightning's and takes the time of both, so that a change of the machine's speed meets both alike. A Lightning step is
everything from the start of one batch to the start of the next: data, transfer, hooks, logging to disk, EMA, report.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning import (
    DenoisingScoreMatching,
    EmbeddedMNIST,
    PowerVESDE,
    RunLogger,
    RunReport,
    ScoreModule,
    ScoreNet,
    ScorePrediction,
)


class BareLoop:
    """The tutorial's loop: perturb, predict, loss, backward, Adam; nothing else."""

    def __init__(self) -> None:
        self.network, self.sde = ScoreNet(), PowerVESDE()
        self.optimizer = torch.optim.AdamW([p for p in self.network.parameters() if p.requires_grad], lr=2e-4)

    def step(self, x: torch.Tensor) -> None:
        t = torch.rand(len(x)) * (1 - 1e-5) + 1e-5
        z = torch.randn_like(x)
        std = self.sde.sigma(t)[:, None, None, None]
        output = self.network(x + std * z, t)
        loss = ((output + z) ** 2).flatten(1).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Alternate(Callback):
    """Takes the time of blocks of Lightning's steps, and runs as many bare ones after each."""

    def __init__(self, block: int, bare: BareLoop) -> None:
        self.block, self.bare = block, bare
        self.ratios: list[float] = []
        self.seconds: list[tuple[float, float]] = []
        self.start: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.block or not trainer.global_step:
            return
        now = time.perf_counter()
        if self.start is not None:
            for _ in range(self.block):
                self.bare.step(batch[0])
            bare = time.perf_counter() - now
            self.seconds.append(((now - self.start) / self.block, bare / self.block))
        self.start = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--block", type=int, default=5, help="steps of one kind before those of the other")
    parser.add_argument("--blocks", type=int, default=24)
    options = parser.parse_args()

    torch.manual_seed(0)
    module = ScoreModule(ScoreNet(), PowerVESDE(), ScorePrediction(), DenoisingScoreMatching("simple"))
    timing = Alternate(options.block, BareLoop())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=options.block * (options.blocks + 3),
            max_epochs=-1,
            limit_val_batches=0,
            logger=RunLogger(folder, "benchmark"),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timing, RunReport()],
        )
        trainer.fit(module, datamodule=EmbeddedMNIST(batch_size=options.batch_size))

    seconds = timing.seconds[1:]  # the first block warms up
    ours, bare = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratios = sorted(a / b for a, b in seconds)
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"Lightning {1e3 * ours:.1f} ms/step, bare {1e3 * bare:.1f} ms/step, {len(ratios)} blocks of {options.block}")
    print(f"step_overhead: ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}); goal at most 1.03")


if __name__ == "__main__":
    main()
