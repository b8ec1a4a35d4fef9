"""Two machines as one: two agents of torchrun that find each other, here through the loopback."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

CONFIGS = Path(__file__).parent.parent.parent / "configs"

TINY = """
trainer:
  accelerator: cpu
  devices: 1
  num_nodes: 2
  max_epochs: 1
  limit_train_batches: 3
  limit_val_batches: 1
  log_every_n_steps: 1
  logger: null
  precision: 32-true
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 5}
    - class_path: diffusion_lightning.FIDCallback
      init_args: {num_samples: 5, batch_size: 2, feature: {class_path: count.Counted}}
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 8}}
"""

# found by the command through PYTHONPATH: features of the pictures, and how many pictures there were in all
COUNT = '''
import os
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

original = FrechetInceptionDistance.compute


def compute(self):
    """Called after the machines' statistics were added up."""
    with open(f"counted{os.environ['RANK']}", "a") as file:
        print(int(self.fake_features_num_samples), file=file)
    return original(self)


FrechetInceptionDistance.compute = compute


class Counted(torch.nn.Module):
    num_features = 4

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images.float() / 255, 14).flatten(1)
'''


def free_port() -> int:
    store = TCPStore("localhost", 0, is_master=True)  # binds a port that nobody has
    return store.port


@pytest.fixture(scope="module")
def on_two_nodes(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Any:
    """Runs `lightning fit` with one process on each of two agents; both must end well."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "count.py").write_text(COUNT)
    files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / "ddp.yaml", "tiny.yaml"]
    config = [part for file in files for part in ("--config", str(file))]

    def run(*args: str) -> str:
        agent = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "test"),
            *("-m", "diffusion_lightning", "fit", *config, *args),
        ]
        search = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
        agents = [
            subprocess.Popen(
                agent,
                cwd=folder,
                env={**environment, "PYTHONPATH": search},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=300)[0] for process in agents]
        finally:
            for process in agents:
                process.terminate()  # an agent takes its process with it
        assert [process.returncode for process in agents] == [0, 0], outputs
        return "".join(outputs)

    return SimpleNamespace(run=run, folder=folder, runs=folder / "runs" / "quickstart")


@pytest.fixture(scope="module")
def fitted(on_two_nodes: Any) -> Any:
    output = on_two_nodes.run()
    return SimpleNamespace(**vars(on_two_nodes), output=output, version_0=on_two_nodes.runs / "version_0")


def losses(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [(row["step"], row["train/loss_step"]) for row in csv.DictReader(file) if row["train/loss_step"]]


def test_they_make_one_run(fitted):
    assert [path.name for path in fitted.runs.iterdir()] == ["version_0"]
    assert fitted.output.count("Done after 3 steps") == 1
    assert [step for step, _ in losses(fitted.version_0)] == ["0", "1", "2"]
    with Image.open(fitted.version_0 / "samples" / "epoch=0000.png") as picture:
        assert picture.size == (3 * 30 + 2, 2 * 30 + 2)


def test_each_sample_is_counted_once(fitted):
    assert [(fitted.folder / f"counted{rank}").read_text().split() for rank in range(2)] == [["5"], ["5"]]


def test_they_go_on_in_the_same_run(fitted):
    before = losses(fitted.version_0)
    output = fitted.run("--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert output.count("Done after 6 steps") == 1
    assert [path.name for path in fitted.runs.iterdir()] == ["version_0"]
    assert losses(fitted.version_0)[:3] == before
    assert [step for step, _ in losses(fitted.version_0)] == [str(step) for step in range(6)]
    assert (fitted.version_0 / "samples" / "epoch=0001.png").is_file()
    last = torch.load(fitted.version_0 / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["ema"]["num_updates"]) == (6, 6)
