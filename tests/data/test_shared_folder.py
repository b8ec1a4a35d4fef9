"""Two real processes and one folder: the first one alone searches it, and both train on what it has found."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numbered import order
from PIL import Image
from torch.distributed import TCPStore

from diffusion_lightning import ConditionSource, ImageFolder

CONFIGS = Path(__file__).parent.parent.parent / "configs"

TINY = """
trainer:
  accelerator: cpu
  devices: 2
  max_epochs: 1
  log_every_n_steps: 1
  logger: null
  precision: 32-true
  enable_progress_bar: false
  callbacks:
    - class_path: spy.Spy
model:
  network: {init_args: {in_channels: 3, channels: [8], middle_attention: false, embed_dim: 8, num_classes: 2}}
data:
  class_path: diffusion_lightning.ImageFolder
  init_args:
    {root: pictures, image_size: 4, val_fraction: 0.25, in_memory: false, batch_size: 4, seed: 3, num_workers: null}
"""

# found by the command through PYTHONPATH: which folders a process looks into, and what it trains on
SPY = """
import builtins
import os
import torch
from lightning.pytorch import Callback

RANK = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
LOOKED, SEEN = [], []


def watch(name):
    original = getattr(os, name)

    def watched(path=".", *args, **kwargs):
        if not isinstance(path, int) and "pictures" in os.path.abspath(os.fsdecode(path)).split(os.sep):
            LOOKED.append(name)
        return original(path, *args, **kwargs)

    setattr(os, name, watched)


for name in ("walk", "scandir", "listdir"):
    watch(name)


def opened(file, *args, **kwargs):
    if str(file).endswith("metadata.csv"):
        LOOKED.append("metadata")
    return original_open(file, *args, **kwargs)


original_open, builtins.open = builtins.open, opened


class Spy(Callback):
    def setup(self, trainer, pl_module, stage):
        data = trainer.datamodule
        self.told = {"classes": data.class_names, "num_classes": data.num_classes, "workers": data.num_workers}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        x, condition = batch
        named = isinstance(condition, dict)
        told = {k: v.tolist() for k, v in condition.items()} if named else condition.tolist()
        SEEN.append((((x[:, :, 0, 0] + 1) * 127.5).round().tolist(), told))

    def on_fit_end(self, trainer, pl_module):
        torch.save({**self.told, "looked": LOOKED, "seen": SEEN, "pid": os.getpid()}, f"rank{RANK}.pt")
"""


def start(folder: Path, environment: dict[str, str], *args: str, **variables: str) -> subprocess.Popen[str]:
    files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / "ddp.yaml", "tiny.yaml"]
    config = [part for file in files for part in ("--config", str(file))]
    search = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_lightning", "fit", *config, *args],
        cwd=folder,
        env={**environment, **variables, "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-four pictures, each of a colour of its own, in two classes."""
    for i in range(24):
        place = tmp_path / "pictures" / ("cat", "dog")[i % 3 == 0] / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 100 + i, 200 + i)).save(place)
    rows = [f"{'dog' if i % 3 == 0 else 'cat'}/{i:02}.png,{'wild' if i % 2 else 'tame'},{i / 4}" for i in range(24)]
    (tmp_path / "pictures" / "metadata.csv").write_text("\n".join(["file_name,kind,size", *rows]))
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "spy.py").write_text(SPY)
    return tmp_path


def machines(count: int) -> list[dict[str, str]]:
    """The variables of what is started: one process, which starts the other; or one on each machine, by torchrun."""
    if count == 1:
        return [{}]
    port = TCPStore("localhost", 0, is_master=True).port  # that nobody has
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    both |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**both, "RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(2)]


def run(folder: Path, environment: dict[str, str], count: int, codes: list[int], *more: str) -> list[str]:
    given = ("--trainer.devices", str(2 // count), "--trainer.num_nodes", str(count), *more)
    processes = [start(folder, environment, *given, **variables) for variables in machines(count)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == codes, outputs
    return outputs


@pytest.mark.parametrize(("count", "columns"), [(1, ["kind", "size"]), (2, None)], ids=["1", "2"])
def test_the_first_process_alone_searches_and_both_train_on_what_it_found(folder, environment, count, columns):
    more = ["--data.condition.columns", str(columns), "--model.network.condition_dim", "1"] if columns else []
    outputs = run(folder, environment, count, [0] * count, *more)
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["pid"] != second["pid"]
    looks = {"walk", "scandir", *(["metadata"] if columns else [])}
    assert looks | {"listdir"} >= set(first["looked"]) >= looks
    assert second["looked"] == []
    for rank in (first, second):
        assert (rank["classes"], rank["num_classes"]) == (["tame", "wild"] if columns else ["cat", "dog"], 2)
        assert rank["workers"] == min(len(os.sched_getaffinity(0)) * count // 2, 8)
    assert "".join(outputs).count("ImageFolder 'pictures': 18 pictures to train on, 6 held out") == 1

    condition = ConditionSource(columns=columns) if columns else None
    data = ImageFolder(str(folder / "pictures"), image_size=4, val_fraction=0.25, condition=condition)
    expected = {rank: [] for rank in range(2)}
    for rank, batches in expected.items():
        for batch in order(18, 4, world=2, rank=rank, seed=3):
            x, given = data.train_images[batch]
            told = {name: value.tolist() for name, value in given.items()} if columns else given.tolist()
            batches.append((x[:, :, 0, 0].tolist(), told))
    assert [first["seen"], second["seen"]] == [expected[0], expected[1]]
    assert len(first["seen"]) == len(second["seen"]) == 2


def test_the_first_process_tells_what_does_not_fit_before_the_other_begins(folder, environment):
    process = start(folder, environment, "--model.network.num_classes", "3")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1, output
    assert output.count("lightning: error: ") == 1
    assert "model.network.num_classes=3: ImageFolder has 2 classes (cat, dog)" in output
    assert not (folder / "runs").exists()


def test_a_picture_that_another_machine_lacks_is_named_before_the_training(folder, environment: dict[str, Any]):
    """Its disk may be another one: here the process there looks for the pictures in a folder of its own."""
    other = folder / "other"
    other.mkdir()
    for name in ("tiny.yaml", "spy.py"):
        (other / name).write_text((folder / name).read_text())
    for path in (folder / "pictures").rglob("*.png"):
        copy = other / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (other / "pictures" / "cat" / "01.png").unlink()
    given = ("--trainer.devices", "1", "--trainer.num_nodes", "2")
    here, there = (
        start(place, environment, *given, **variables)
        for place, variables in zip((folder, other), machines(2), strict=True)
    )
    output = there.communicate(timeout=300)[0]
    here.communicate(timeout=300)
    assert there.returncode != 0
    assert "cannot read the picture pictures/cat/01.png: No such file or directory; replace or remove it" in output
    assert not (folder / "rank0.pt").exists()
