"""A record of what each config's training does: 30 steps at small size, kept in ``tests/records/*.json``.

``test_configs.py`` trains again and compares every figure within 2 %, so that a recipe that gets worse is seen. After a
change that is meant, ``python tests/records.py [config …]`` writes them anew; what changed is in the difference.

A record holds the loss and the learning rate of each step, the loss on held-out examples, and the sliced Wasserstein
distance between samples of the trained model and examples. The recipe is its own but for the size: a narrow network,
small batches, few steps of the sampler, float32 on one thread. CPUs differ in the order of sums: with kernels for no
vector units (``ATEN_CPU_CAPABILITY=default``) no figure of five configs moved by more than 3 in 10,000, and that of the
quickstart, whose Muon amplifies rounding.
"""

import csv
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torchvision.io import write_png

from diffusion_lightning import ConditionSource, EmbeddedMNIST, Points, ScoreModule
from diffusion_lightning.commands import cli
from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein

CONFIGS = Path(__file__).parent.parent / "configs"
FOLDER = Path(__file__).parent / "records"

TRAINER = {
    **{"accelerator": "cpu", "devices": 1, "precision": "32-true", "logger": None, "callbacks": None},
    **{"max_epochs": 2, "max_steps": 30, "limit_train_batches": 15, "limit_val_batches": 4, "log_every_n_steps": 1},
    **{
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}
NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [8, 8], "num_res_blocks": 1, "attention_levels": [1], "num_heads": 1, "embed_dim": 16},
    "ScoreNet": {"channels": [32, 32], "embed_dim": 16},
    "DoubleConvUNet": {"channels": [8, 8], "attention_levels": [1]},
    "DiffusersUNet": {
        "config.sample_size": 16,
        "config.block_out_channels": [8, 8, 8, 8],
        "config.norm_num_groups": 4,
    },
    "MLP": {},
}
SAMPLER_STEPS = {"steps": 8, "steps_per_scale": 8}


def coloured_pictures() -> Tensor:
    """160 of 16×16, smooth, each with a colour of its own; uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(160, 3, 4, 4, generator=generator) * 0.5 + torch.rand(160, 3, 1, 1, generator=generator) * 0.5
    return (torch.nn.functional.interpolate(coarse, 16, mode="bilinear") * 255).to(torch.uint8)


def examples(data: str) -> Tensor:
    """What a model is to draw, as rows."""
    if data == "Points":
        points = Points(distribution="split_normal", num_points=512)
        points.setup("fit")
        return torch.stack([points.sets()[0][i][0] for i in range(512)])
    images = coloured_pictures() if data == "CIFAR10" else EmbeddedMNIST().held_out_images[range(0, 1000, 10)][0]
    return images.flatten(1) / 127.5 - 1


def options(recipe: dict[str, Any]) -> list[str]:
    """The changes that make it small, as options of the command."""
    model, data = recipe["model"], recipe["data"]["class_path"].split(".")[-1]
    network = model["network"]["class_path"].split(".")[-1]
    changes = {f"trainer.{name}": value for name, value in TRAINER.items()}
    changes |= {f"model.network.{name}": value for name, value in NETWORKS[network].items()}
    sampler = model["sampler"]["init_args"]
    changes |= {f"model.sampler.{name}": few for name, few in SAMPLER_STEPS.items() if name in sampler}
    if data == "CIFAR10":
        flip = recipe["data"]["init_args"].get("flip", True)
        arguments = {"root": "pictures", "image_size": 16, "batch_size": 8, "val_fraction": 0.25, "flip": flip}
        changes["data"] = {"class_path": "ImageFolder", "init_args": arguments}
    elif data == "Points":
        changes["data.batch_size"] = 256
    else:
        condition = recipe["data"]["init_args"].get("condition")
        changes["data"] = {"class_path": "EmbeddedMNIST", "init_args": {"batch_size": 8, "condition": condition}}
    return [
        part
        for name, value in changes.items()
        for part in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def train(name: str) -> dict[str, Any]:
    """Train the config of that name in the working folder; returns the record."""
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for i, picture in enumerate(coloured_pictures()):
        path = Path("pictures", str(i % 10), f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, str(path))
    cli.main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *options(recipe)])
    run = Path("runs", name, "version_0")
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        metric: [float(f"{float(row[metric]):.5g}") for row in rows if row.get(metric)]
        for metric in ("train/loss_step", "train/lr", "val/loss")
    }
    module = ScoreModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    real = examples(recipe["data"]["class_path"].split(".")[-1])
    real = real[: min(len(real), 512 if real.shape[1] == 2 else 32)]
    source = recipe["data"]["init_args"].get("condition")
    told = EmbeddedMNIST(condition=ConditionSource(**source)).examples(range(len(real)))[1] if source else {}
    generator = torch.Generator().manual_seed(0)
    drawn = module.sample(num=len(real), generator=generator, condition=module.asked_like(told)).flatten(1)
    distance = sliced_wasserstein(drawn, real, generator=torch.Generator().manual_seed(0))
    return {**found, f"sliced_wasserstein@{len(real)}": float(f"{distance:.5g}")}


def main(names: list[str]) -> None:
    """Write the records of these configs, or of all."""
    torch.set_num_threads(1)
    for name in names or sorted(path.stem for path in CONFIGS.glob("*.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            before = os.getcwd()
            os.chdir(folder)
            try:
                record = train(name)
            finally:
                os.chdir(before)
        text = json.dumps(record, indent=1).replace(",\n  ", ", ").replace("[\n  ", "[").replace("\n ]", "]")
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
