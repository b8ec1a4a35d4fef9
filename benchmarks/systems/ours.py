"""This framework by the command that its users give: ``lightning fit --config configs/mnist.yaml``."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning import AutoPrecision, ScoreModule
from diffusion_lightning.commands.lightning_cli import DiffusionCLI
from systems.base import System

CONFIGS = Path(__file__).parents[2] / "configs"


class Marks(Callback):
    """Saves a checkpoint at each of the marks, in seconds of training, and ends the training at the last."""

    reached: tuple[tuple[float, int], ...] = ()
    """Of the last training: seconds and steps at each mark."""

    def __init__(self, marks: list[float], folder: str) -> None:
        self.marks, self.folder = marks, Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Marks.reached = ()
        self.began, self.saving = time.perf_counter(), 0.0
        self.bar = tqdm(total=round(self.marks[-1]), desc="train ours", unit="s")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self.began - self.saving
        self.bar.update(min(round(seconds), self.bar.total) - self.bar.n)
        is_last = trainer.global_step == trainer.max_steps
        while len(self.reached) < len(self.marks) and (seconds >= self.marks[len(self.reached)] or is_last):
            trainer.save_checkpoint(self.folder / f"{len(self.reached)}.pt")
            Marks.reached += ((seconds, trainer.global_step),)
            self.saving = time.perf_counter() - self.began - seconds
        trainer.should_stop = len(self.reached) == len(self.marks)


class Ours(System):
    name = "ours"
    settings = (
        "configs/mnist.yaml: EDM, a class-conditional U-Net (32, 64 channels) on 2×2 pixels, Muon, batch 64, bf16, "
        "EMA; DPM-Solver++(2M) with 8 steps"
    )
    nfe = 8
    options: tuple[str, ...] = ()

    def command(self, folder: Path, *options: str) -> list[str]:
        """The arguments of ``lightning``."""
        schedule = {"max_steps": self.steps, "max_epochs": -1, "limit_val_batches": 0, "enable_progress_bar": False}
        return [
            *("fit", "--config", str(CONFIGS / "mnist.yaml"), "--data.root", self.root),
            *(f"--trainer.{name}={value}" for name, value in schedule.items()),
            *("--trainer.logger=false", f"--trainer.default_root_dir={folder}"),
            *(*self.options, *options),
        ]

    def train(self, marks: Sequence[float], folder: Path) -> list[tuple[float, int]]:
        """Through Lightning, with everything that comes along: logging, checkpoints, EMA, report."""
        callback = {"class_path": "systems.ours.Marks", "init_args": {"marks": list(marks), "folder": str(folder)}}
        DiffusionCLI(self.command(folder, f"--trainer.callbacks={json.dumps([callback])}"))
        return list(Marks.reached)

    @classmethod
    def parameters_of(cls, path: Path) -> int:
        module = ScoreModule.load_from_checkpoint(path)
        return sum(p.numel() for p in module.network.parameters() if p.requires_grad)

    @classmethod
    @torch.no_grad()
    def sample(cls, path: Path, num: int, batch_size: int) -> Tensor:
        module = ScoreModule.load_from_checkpoint(path)
        with AutoPrecision().forward_context():
            return module.sample(num=num, labels=module.labels_in_shares(num), batch_size=batch_size)


class OursWithoutClasses(Ours):
    name = "ours-without-classes"
    settings = "the same, but for model.network.init_args.num_classes: null, and so without dropout and guidance"
    options = (
        "--model.network.init_args.num_classes=null",
        "--model.condition_dropout=0",
        "--model.guidance=null",
    )
