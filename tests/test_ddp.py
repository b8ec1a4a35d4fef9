"""Two real processes: one run, equal weights, each sample counted once."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion_lightning import EmbeddedMNIST
from diffusion_lightning.metrics.kernel_distance import KernelDistance
from diffusion_lightning.randomness import draw_some

CONFIGS = Path(__file__).parent.parent / "configs"

TINY = """
trainer:
  accelerator: cpu
  devices: 2
  max_epochs: 2
  limit_train_batches: 3
  limit_val_batches: 1
  log_every_n_steps: 1
  logger: null
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 5, animate: last}
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 3, name: weights, guidance_weights: [0, 1, 3], every_n_epochs: 2}
    - class_path: diffusion_lightning.FIDCallback
      init_args: {num_samples: 7, batch_size: 2, feature: mnist}
    - class_path: spy.Spy
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8, num_classes: 10}}
  sampler: {init_args: {steps: 2}}
  guidance: {init_args: {weight: 1, interval: null}}
data: {init_args: {batch_size: 8, num_predict: 5}}
"""

# found by the command through PYTHONPATH: writes down what each process saw
SPY = '''
import os
import torch
from pathlib import Path
from lightning.pytorch import Callback
from torchmetrics.image.fid import FrechetInceptionDistance
from diffusion_lightning.callbacks import LastCheckpoint, checkpoints

from diffusion_lightning.metrics import features, kept

kept.PART = 2000
SEEN = {"fake": [], "real": [], "features": [], "drawn": [], "losses": [], "labels": [], "seeds": [], "saved": []}
original = FrechetInceptionDistance.compute


def compute(self):
    """Called after the processes' statistics were added up."""
    SEEN["fake"].append(int(self.fake_features_num_samples))
    SEEN["real"].append(int(self.real_features_num_samples))
    return original(self)


FrechetInceptionDistance.compute = compute


class Clock:
    """Stands still in the first process; in the other an hour passes with every look at it."""

    now = 0

    def monotonic(self):
        self.now += 3600 * int(os.environ.get("LOCAL_RANK", 0))
        return self.now


checkpoints.time = Clock()
write = LastCheckpoint._save_checkpoint


def save(self, trainer, path):
    SEEN["saved"].append(trainer.global_step)
    write(self, trainer, path)


LastCheckpoint._save_checkpoint = save


class Patches(torch.nn.Module):
    num_features = 4

    def forward(self, images):
        SEEN["features"].append(len(images))
        features = torch.nn.functional.avg_pool2d(images.float() / 255, 14).flatten(1)
        if len(images) <= 2:
            SEEN["drawn"].append(features)
        return features

    def logits(self, features):
        """In turn: sure that it is a 0, and almost sure that it is a 2."""
        sure = torch.arange(len(features)) % 2 == 0
        return torch.where(sure[:, None], 9 * torch.eye(10)[0], 4 * torch.eye(10)[2])


features.FEATURES["mnist"] = features.Feature(lambda weights: Patches(), 4, classes=tuple("0123456789"))


class Spy(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        SEEN["losses"].append(outputs["loss"].item())
        SEEN["labels"].append(batch[1].tolist())
        SEEN["seeds"].append(torch.initial_seed())

    def on_fit_end(self, trainer, pl_module):
        weights = [p.detach() for p in pl_module.network.parameters()]
        metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
        seen = {**SEEN, "weights": weights, "ema": pl_module.ema.shadow_params, "metrics": metrics}
        torch.save({**seen, "pid": os.getpid()}, f"rank{trainer.global_rank}.pt")
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Any:
    """Runs the command on two processes in a folder of its own."""
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "spy.py").write_text(SPY)
    files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / "ddp.yaml", "tiny.yaml"]

    def run(name: str, *args: str) -> Any:
        config = [part for file in files for part in ("--config", str(file))]
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", name, *config, *args],
            cwd=folder,
            env={**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,  # one that waits for the other would wait for ever
        )
        assert done.returncode == 0, done.stderr
        return done

    run.folder = folder  # type: ignore[attr-defined]
    run.version_0 = folder / "runs" / "quickstart" / "version_0"  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def fitted(command: Any) -> Any:
    done = command("fit")
    ranks = [torch.load(command.folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return SimpleNamespace(out=done.stdout, err=done.stderr, ranks=ranks, folder=command.version_0)


def test_two_processes_end_with_the_same_weights(fitted):
    first, second = fitted.ranks
    assert first["pid"] != second["pid"]
    for name in ("weights", "ema"):
        assert all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))


def test_each_learns_from_its_own_images_and_noise(fitted):
    first, second = fitted.ranks
    assert len(first["losses"]) == len(second["losses"]) == 6
    assert first["labels"] != second["labels"]
    assert len({*first["losses"], *second["losses"]}) == 12
    assert len({*first["seeds"], *second["seeds"]}) == 12


def test_every_image_is_counted_once_in_the_fid(fitted):
    first, second = fitted.ranks
    assert first["fake"] == second["fake"] == [7, 7]
    assert first["real"] == second["real"] == [9000, 9000]
    # of 9000 images in parts of 2000 the first process reads three, and the second two; and the first KID's 5000
    assert [sum(first["features"]), sum(second["features"])] == [5000 + 5000 + 500 + 2 * 4, 4000 + 500 + 2 * 3]
    assert first["metrics"]["fid/mnist@7"] == second["metrics"]["fid/mnist@7"] > 0


def test_the_kernel_distance_is_of_the_samples_of_both(fitted):
    first, second = fitted.ranks
    real = EmbeddedMNIST().train_images.images[draw_some(5000, 9000, seed=0)]
    drawn = torch.cat([*first["drawn"][2:], *second["drawn"][2:]])  # of the second epoch
    assert len(drawn) == 7
    features = torch.nn.functional.avg_pool2d(real.float() / 255, 14).flatten(1)
    values = [rank["metrics"]["kid/mnist@7"] for rank in fitted.ranks]
    assert values == [pytest.approx(KernelDistance(features)(drawn), rel=1e-4)] * 2


def test_what_is_read_in_all_samples_is_added_up(fitted):
    """In batches of two the first process draws 0 and 2, 4 and 6, the other 1 and 3, and 5."""
    labels = EmbeddedMNIST().held_out_images.labels[draw_some(1000, 1000, seed=0)]
    read = [label == 2 * (place // 2 % 2) for place, label in enumerate(labels.tolist())]
    for rank in fitted.ranks:
        values = {name: value for name, value in rank["metrics"].items() if name.startswith(("agreement", "legible"))}
        assert values == {
            "agreement/mnist@7": pytest.approx(2 / 7),
            "agreement_error/mnist@7": pytest.approx((2 / 7 * 5 / 7 / 7) ** 0.5),
            "agreement/mnist_real@1000": pytest.approx(sum(read) / 1000),
            "legible/mnist@7": pytest.approx(4 / 7),
            "legible_error/mnist@7": pytest.approx((4 / 7 * 3 / 7 / 7) ** 0.5),
            "legible/mnist_real@1000": 0.5,
        }


def test_the_logged_losses_are_those_of_both(fitted):
    both = [sum(rank["losses"][3:]) / 3 for rank in fitted.ranks]
    with open(fitted.folder / "metrics.csv", newline="") as file:
        logged = [float(row["train/loss_epoch"]) for row in csv.DictReader(file) if row["train/loss_epoch"]]
    assert logged[1] == pytest.approx(sum(both) / 2, rel=1e-5)
    assert fitted.ranks[0]["metrics"]["val/loss"] == fitted.ranks[1]["metrics"]["val/loss"]


def test_the_first_ones_clock_says_when_both_save(fitted):
    # before the first epoch's pictures, and at the end
    assert [rank["saved"] for rank in fitted.ranks] == [[3, 6], [3, 6]]


def test_they_say_nothing_that_nobody_can_act_on(fitted):
    assert re.findall(".*(?:deprecated|recommended to use).*", fitted.out + fitted.err) == []


def test_they_write_one_run(fitted):
    assert [path.name for path in fitted.folder.parent.iterdir()] == ["version_0"]
    names = {str(path.relative_to(fitted.folder)) for path in fitted.folder.rglob("*") if path.is_file()}
    best = {name for name in names if name.startswith("checkpoints/epoch=")}
    assert len(best) == 1
    assert names - best == {
        "config.yaml",
        "environment.yaml",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "samples/epoch=0000.png",
        "samples/epoch=0001.png",
        "samples/epoch=0001.gif",
        "weights/epoch=0001.png",
    }
    with Image.open(fitted.folder / "samples" / "epoch=0001.png") as picture:
        assert picture.size == (3 * 30 + 2, 2 * 30 + 2)
        cells = [picture.crop((x, y, x + 28, y + 28)) for y in (2, 32) for x in (2, 32, 62)]
    assert [cell.getbbox() is not None for cell in cells] == [True] * 5 + [False]  # five pictures and no sixth
    assert len({cell.tobytes() for cell in cells}) == 6
    with Image.open(fitted.folder / "weights" / "epoch=0001.png") as picture:
        assert picture.size == (3 * 30 + 2, 3 * 30 + 2)
        rows = [[picture.crop((x, y, x + 28, y + 28)).tobytes() for x in (2, 32, 62)] for y in (2, 32, 62)]
    # of the same noise as the other grid, and weight 1 is no guidance; the third is of another class here than there
    assert rows[1][:2] == [cell.tobytes() for cell in cells[:2]]
    assert len({cell for row in rows for cell in row}) == 9
    assert fitted.out.count("Done after 6 steps") == 1


def test_predictions_are_shared_between_them(command, fitted):
    command("predict", "--ckpt_path", "last")
    written = sorted((command.version_0 / "predictions").iterdir())
    assert [path.name for path in written] == [f"{n:06d}.png" for n in range(5)]
    pictures = set()
    for path in written:
        with Image.open(path) as picture:
            pictures.add(picture.tobytes())
    assert len(pictures) == 5  # no two of them drew the same noise
