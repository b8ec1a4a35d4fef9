"""What conditions cost: guided samples over twice the unguided ones, and a training step with dropout over one without.

    python benchmarks/guidance.py

The network is that of ``configs/mnist.yaml``. Samples are drawn by Heun at the same steps: guided ones take twice the
network's evaluations, both halves in one batch, so they are compared with one unguided run before and one after, and
with unguided runs of twice as many samples. Steps with ``condition_dropout`` 0.1 and without take turns in one fit, a
few of each. All is timed in one process, so that a change of the machine's speed meets both sides alike.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from results import machine, table, write
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning import (
    ClassifierFreeGuidance,
    Denoiser,
    DenoisingScoreMatching,
    EmbeddedMNIST,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    LogNormalTimes,
    ScoreModule,
    UNet,
)

GOALS = {"guided over 2 × unguided": 1.05, "guided over 1 × twice as many": 1.05, "with dropout over without": 1.01}
DROPOUT = 0.1
WARM_UP = 2
"""Of both kinds, before anything is counted."""


def recipe() -> ScoreModule:
    """Of ``configs/mnist.yaml``; the cost of its optimizer is no part of either comparison."""
    torch.manual_seed(0)
    network = UNet(
        channels=(32, 64), num_res_blocks=1, patch_size=2, num_classes=10, time_embedding="fourier", time_scale=1.0
    )
    objective = DenoisingScoreMatching("karras", times=LogNormalTimes(), reduction="mean")
    return ScoreModule(network, KarrasSDE(), KarrasPreconditioning(), objective, condition_dropout=DROPOUT)


def seconds(denoiser: Denoiser, labels: Tensor, steps: int) -> float:
    """Of one run of the sampler."""
    start = time.perf_counter()
    Heun(steps)(denoiser, (len(labels), 1, 28, 28), labels=labels)
    return time.perf_counter() - start


def sampling(module: ScoreModule, batch_size: int, steps: int, rounds: int, is_whole: bool) -> list[float]:
    """Of each round the time of guided samples over that of unguided ones before and after.

    These are as many, drawn twice; or twice as many, drawn at once, which tells the guidance's own cost from that of a
    larger batch.
    """
    plain = module.denoiser.eval()
    guided = ClassifierFreeGuidance(plain, weight=2.0)
    labels = torch.arange(batch_size) % 10
    others = labels.repeat(2) if is_whole else labels
    ratios, before = [], seconds(plain, others, steps)
    for _ in tqdm(range(rounds + WARM_UP), desc="guided, unguided", unit="round"):
        between, after = seconds(guided, labels, steps), seconds(plain, others, steps)
        ratios.append((1 + is_whole) * between / (before + after))
        before = after
    return ratios[WARM_UP:]


class Turns(Callback):
    """Turns the dropout on for a block of steps and off for the next, and takes the time of each."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.block:
            return
        now = time.perf_counter()
        if trainer.global_step:
            self.seconds.append(now - self._start)
        pl_module.condition_dropout = 0.0 if trainer.global_step // self.block % 2 else DROPOUT  # type: ignore[assignment]
        self._start = now


def training(module: ScoreModule, batch_size: int, block: int, rounds: int) -> list[float]:
    """Of each round the time of steps with dropout over that of as many without."""
    turns = Turns(block)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2 * block * (rounds + WARM_UP) + 1,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[turns],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module.train(), datamodule=EmbeddedMNIST(batch_size=batch_size))
    told = turns.seconds[2 * WARM_UP :]
    return [dropped / whole for dropped, whole in zip(told[::2], told[1::2], strict=True)]


def page(results: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for name, goal in GOALS.items():
        low, median, high = statistics.quantiles(results[name], n=4)
        rows.append([name, len(results[name]), f"{median:.3f}", f"{low:.3f} to {high:.3f}", f"at most {goal}"])
    return "\n\n".join(
        [
            "# The cost of conditions",
            f"`python benchmarks/guidance.py`: the network of `configs/mnist.yaml`; {results['batch_size']} samples by "
            f"{results['steps']} steps of Heun, guided in one batch of both halves; training steps of "
            f"{results['batch_size']} digits, {results['block']} of each kind in turn.",
            table(["time of", "pairs", "median of the ratios", "quartiles", "goal"], rows),
            results["machine"],
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of Heun")
    parser.add_argument("--block", type=int, default=10, help="training steps of one kind before those of the other")
    parser.add_argument("--rounds", type=int, default=24)
    options = parser.parse_args()
    module = recipe()
    results = {
        **vars(options),
        "guided over 2 × unguided": sampling(module, options.batch_size, options.steps, options.rounds, False),
        "guided over 1 × twice as many": sampling(module, options.batch_size, options.steps, options.rounds, True),
        "with dropout over without": training(module, options.batch_size, options.block, options.rounds),
        "machine": machine(),
    }
    write("guidance", results, page(results))


if __name__ == "__main__":
    main()
