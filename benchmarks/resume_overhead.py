"""What exact resume and the handling of faults cost, for a training step and for saving a checkpoint.

    python benchmarks/resume_overhead.py

Steps: one training, in which blocks of steps with and without take turns. Without means: the noise comes from
PyTorch's global generator, nobody looks whether loss and gradient are finite, no signal is asked for, no checkpoint is
thought of. Saving: a checkpoint of a larger network is saved, and as many bytes are written, flushed and renamed, in
turns.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from diffusion_lightning import (
    BestCheckpoint,
    EmbeddedMNIST,
    GracefulStop,
    KarrasPreconditioning,
    KarrasSDE,
    LastCheckpoint,
    PowerVESDE,
    RunLogger,
    ScoreModule,
    ScoreNet,
    ScorePrediction,
    UNet,
    WholeCheckpointIO,
)
from diffusion_lightning.progress import progress_bar


class Bare(ScoreModule):
    """A ScoreModule that leaves all of it out while ``bare`` is set."""

    bare = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.bare:
            super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.bare:
            return super().training_step(batch, batch_idx)
        x, labels = batch
        loss = self.objective(self.denoiser, x, **self.condition(labels)).mean()
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if not self.bare:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
        else:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")


class TakeTurns(Callback):
    """Switches every ``block`` steps, and takes the time of each block."""

    def __init__(self, block: int, watched: list[Callback]) -> None:
        self.block, self.watched = block, watched
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.block == 0:
            now = time.perf_counter()
            if trainer.global_step > 2 * self.block:  # the first ones warm up
                self.seconds[pl_module.bare].append((now - self.start) / self.block)
            pl_module.bare = not pl_module.bare
            self.start = time.perf_counter()
        if not pl_module.bare:  # they are not among the trainer's callbacks, so that they can be left out
            for callback in self.watched:
                callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)


def steps(options: argparse.Namespace) -> None:
    """Print the ratio of steps."""
    last, best = LastCheckpoint(every_n_train_steps=10**9), BestCheckpoint()
    timing = TakeTurns(options.block, [GracefulStop(), last, best])
    module = Bare(ScoreNet(), PowerVESDE(), ScorePrediction())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=options.block * (2 * options.blocks + 3),
            max_epochs=-1,
            limit_val_batches=0,
            logger=RunLogger(folder, "benchmark"),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timing],
        )
        last.dirpath = best.dirpath = folder
        trainer.fit(module, datamodule=EmbeddedMNIST(batch_size=options.batch_size))
    with_it, bare = timing.seconds
    ratios = [a / b for a, b in zip(with_it, bare, strict=False)]
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"{1e3 * statistics.median(with_it):.1f} ms/step with, {1e3 * statistics.median(bare):.1f} without")
    print(f"resume_overhead: ratio {median:.4f} (quartiles {low:.3f} to {high:.3f}); goal at most 1.01")


def saving(options: argparse.Namespace) -> None:
    """Print the ratio of saving."""
    ours, plain = [], []
    module = ScoreModule(UNet(channels=(128, 256, 256)), KarrasSDE(), KarrasPreconditioning())
    with tempfile.TemporaryDirectory(dir=".") as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            plugins=[WholeCheckpointIO()],
        )
        trainer.fit(module, datamodule=EmbeddedMNIST(batch_size=2))
        path = Path(folder) / "last.ckpt"
        for _ in progress_bar(iterable=range(options.saves + 1), desc="saving", unit="checkpoint"):
            start = time.perf_counter()
            trainer.save_checkpoint(path)
            ours.append(time.perf_counter() - start)
            content = path.read_bytes()
            start = time.perf_counter()
            with open(Path(folder) / "plain.part", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, Path(folder) / "plain")
            plain.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(ours[1:], plain[1:], strict=True))
    seconds = statistics.median(ours[1:]), statistics.median(plain[1:])
    print(f"{len(content) / 2**20:.0f} MiB: saved in {seconds[0]:.2f} s, its bytes written in {seconds[1]:.2f} s")
    print(f"saving: ratio {ratio:.2f}; goal about 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--block", type=int, default=4, help="steps of one kind before those of the other")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--saves", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    steps(options)
    saving(options)


if __name__ == "__main__":
    main()
