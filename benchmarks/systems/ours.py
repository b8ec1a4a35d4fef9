"""This framework by the command that its users give: ``lightning fit --config configs/mnist.yaml``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from diffusion_lightning import AutoPrecision, ScoreModule
from diffusion_lightning.commands.lightning_cli import DiffusionCLI
from systems import our_training
from systems.base import System, Watch, images_through


class Watched(Callback):
    """Tells the benchmark of every step, which may save there, and ends the training when it says so."""

    watch: ClassVar[Watch]
    """That of the training that is to start: the command line takes plain arguments alone."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not Watched.watch(trainer.global_step, trainer.save_checkpoint):
            trainer.should_stop = True


class Ours(System):
    name = "ours"
    settings = "lightning fit --config configs/mnist.yaml, drawn by its own sampler"
    batch_size = our_training.BATCH_SIZE
    has_classes = True
    is_scheduled = True
    options: tuple[str, ...] = ()

    def train(self, watch: Watch, folder: Path, start: Path | None = None) -> None:
        """Through Lightning, with everything that comes along: logging, checkpoints, EMA, report."""
        Watched.watch = watch
        schedule = {"max_steps": self.steps, "max_epochs": -1, "limit_val_batches": 0, "enable_progress_bar": False}
        callbacks = json.dumps([{"class_path": "systems.ours.Watched"}])
        DiffusionCLI(
            [
                *("fit", "--config", str(our_training.CONFIG), "--data.root", self.root),
                *(f"--trainer.{name}={value}" for name, value in schedule.items()),
                *("--trainer.logger=false", f"--trainer.default_root_dir={folder}", f"--trainer.callbacks={callbacks}"),
                *(() if start is None else (f"--ckpt_path={start}",)),
                *self.options,
            ]
        )

    @classmethod
    def parameters_of(cls, path: Path) -> int:
        module = ScoreModule.load_from_checkpoint(path)
        return sum(p.numel() for p in module.network.parameters() if p.requires_grad)

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        return {"the recipe's": None}

    @classmethod
    @torch.no_grad()
    def sample(
        cls, path: Path, num: int, batch_size: int, sampler: str, labels: Tensor | None = None
    ) -> tuple[Tensor, float]:
        module = ScoreModule.load_from_checkpoint(path)
        with AutoPrecision().forward_context(), images_through(module.network) as seen:
            samples = module.sample(num=num, labels=labels, batch_size=batch_size)
        return samples, sum(seen) / num


class OursWithoutClasses(Ours):
    name = "ours-without-classes"
    settings = (
        "configs/mnist.yaml, but for model.network.init_args.num_classes: null, and so without dropout and guidance"
    )
    has_classes = False
    options = (
        "--model.network.init_args.num_classes=null",
        "--model.condition_dropout=0",
        "--model.guidance=null",
    )
