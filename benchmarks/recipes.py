"""What is trained: two of the repository's configs, each as a list of arguments of ``lightning fit``.

``mnist`` is configs/mnist.yaml on the digits. ``cifar10`` is configs/cifar10.yaml as a GPU takes it best: a compiled
network, a fused optimizer, and the images, which are noise, on the device. Both are in bf16 where the device has units
for it.
"""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

from diffusion_lightning import ScoreModule, Trainer
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages

CONFIGS = Path(__file__).parent.parent / "configs"

RECIPES = {"mnist": (32, 64), "cifar10": (128, 256, 256)}
"""Their names and their networks' channels."""

BATCH_SIZE = 64


class Noise(ImageDataModule):
    """50,000 images of noise of CIFAR-10's size, mirrored at random; kept on a GPU where one trains."""

    shape = (3, 32, 32)
    num_classes = 10
    fid_feature = "inception"
    flip = True

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        images = torch.randint(0, 256, (50_000, *self.shape), dtype=torch.uint8)
        noise = TensorImages(images, torch.zeros(len(images), dtype=torch.int64))
        return noise, noise


def arguments(
    recipe: str, root: str, folder: Path, device: str = "cpu", batch_size: int = BATCH_SIZE, shrink: int = 1
) -> list[str]:
    """Of ``lightning fit``: a recipe that trains without end and does nothing else.

    Args:
        recipe: one of :data:`RECIPES`.
        root: folder of MNIST in torchvision's layout.
        folder: where the run goes.
        device: ``"cpu"`` or ``"cuda"``.
        batch_size: images per step.
        shrink: divides the channels.
    """
    channels = [width // shrink for width in RECIPES[recipe]]
    trainer = {
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": 1,
        "max_epochs": 1_000_000,  # without an end: but a schedule that follows the run's length must know one
        "limit_val_batches": 0,
        "logger": "false",
        "callbacks": "[]",
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "precision": "auto",
        "default_root_dir": folder,
    }
    data = {
        "mnist": [f"--data.init_args.root={root}"],
        "cifar10": ["--data=recipes.Noise"],
    }
    model = {"mnist": [], "cifar10": ["--model.compile=true", "--model.optimizer.init_args.fused=true"]}
    return [
        *("--config", str(CONFIGS / f"{recipe}.yaml")),
        *(f"--trainer.{name}={value}" for name, value in trainer.items()),
        *(f"--model.network.init_args.channels={channels}", *model[recipe]),
        *(*data[recipe], f"--data.init_args.batch_size={batch_size}"),
    ]


def build(given: list[str]) -> tuple[ScoreModule, ImageDataModule]:
    """The module and the data of these arguments, without a run."""
    cli = LightningCLI(
        ScoreModule,
        LightningDataModule,
        trainer_class=Trainer,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=given,
        run=False,
    )
    return cli.model, cli.datamodule
