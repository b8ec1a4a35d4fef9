"""Folders of runs as a training leaves them, without a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_lightning.loggers.metrics_table import MetricsTable


def course(epochs: int = 3, steps: int = 10, scale: float = 1.0) -> list[dict[str, float]]:
    """Rows as those of a run that logs every fifth step, falling losses, an FID at each epoch's end."""
    rows: list[dict[str, float]] = []
    for step in range(4, epochs * steps, 5):
        epoch = step // steps
        row = {
            "step": step,
            "epoch": epoch,
            "train/loss_step": scale / (1 + step),
            "train/gradient_norm": 2 * scale / (1 + step),
            "train/lr": 0.01 * (1 - step / (epochs * steps)),
            "train/ema_decay": 1 - 1 / (2 + step),
            "train/skipped_steps": 0.0,
            "perf/examples_per_s": 200.0 + step,
            "perf/examples_per_s_rank": 200.0 + step,
            "perf/memory_gb": 1.25,
        }
        if step % steps == steps - 1:
            row |= {
                "train/loss_epoch": scale / (2 + epoch),
                "val/loss": scale / (1 + epoch),
                "fid/mnist@50": 9.0 - epoch,
            }
            row |= {"time/data": 0.5, "time/step": 6.0, "time/sampling": 1.0, "time/evaluation": 2.0}
            row |= {"time/checkpoint": 0.25, "time/other": 0.25}
        rows.append(row)
    return rows


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 3,
        "precision": "auto",
        "callbacks": [
            {"class_path": "diffusion_lightning.SampleGrid", "init_args": {"num_samples": 64, "name": "samples"}},
            {"class_path": "diffusion_lightning.SampleGrid", "init_args": {"num_samples": 16, "name": "few"}},
        ],
    },
    "model": {
        "network": {"class_path": "diffusion_lightning.UNet", "init_args": {"channels": [32, 64], "dropout": 0.0}},
        "sde": {"class_path": "diffusion_lightning.KarrasSDE", "init_args": {"rho": 7.0}},
        "optimizer": {"class_path": "timm.optim.Muon", "init_args": {"lr": 0.01}},
        "lr_scheduler": None,
    },
    "data": {"class_path": "diffusion_lightning.EmbeddedMNIST", "init_args": {"batch_size": 64}},
    "run_name": "quickstart",
    "ckpt_path": None,
}


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def animation(path: Path, colors: Sequence[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.new("RGB", (24, 16), color) for color in colors]
    first.save(path, save_all=True, append_images=others, duration=200, loop=0)


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """As a run writes them."""
    table = MetricsTable(path)
    for row in rows:
        table.add({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
        table.save()
