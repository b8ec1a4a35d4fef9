"""Runs that are killed and resumed, and trackers that fail, as real processes: each step once, and training goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from wandb_records import wandb_records

from diffusion_lightning.training.checkpoint_file import KEY, LOGGED

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

TINY = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 4
  limit_train_batches: 3
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    - class_path: diffusion_lightning.WandbLogger
    - class_path: diffusion_lightning.TensorBoardLogger
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 2, animate: always}
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 8}}
"""

# found by the command through PYTHONPATH
ACCIDENT = '''
import os
import signal
import subprocess
import time
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger


class Kill(Callback):
    """Kills W&B's own process, and this one unless it is to go on, when a step begins."""

    def __init__(self, step: int, goes_on: bool = False, wait: float = 0.0):
        self.step, self.goes_on, self.wait = step, goes_on, wait

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step != self.step:
            return
        time.sleep(self.wait)
        table = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True).stdout
        children = [line.split() for line in table.splitlines() if int(line.split()[1]) == os.getpid()]
        services = [int(pid) for pid, _, program, *_ in children if program.endswith("wandb-core")]
        assert services
        for pid in services:
            os.kill(pid, signal.SIGKILL)
        if not self.goes_on:
            os.kill(os.getpid(), signal.SIGKILL)


class Broken(Logger):
    """A tracker of which everything fails."""

    @property
    def name(self):
        raise RuntimeError("no name")

    @property
    def version(self):
        raise RuntimeError("no version")

    def log_metrics(self, metrics, step=None):
        raise RuntimeError("no metrics")

    def log_hyperparams(self, params, *args, **kwargs):
        raise RuntimeError("no parameters")

    def finalize(self, status):
        raise RuntimeError("no end")
'''


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows in a ``.wandb`` file."""
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def parts(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows in each of a run's W&B folders, oldest first."""
    return [list(history(path)) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def table(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def events(folder: Path) -> dict[str, list[int]]:
    """The steps of each name in a folder of TensorBoard's, without the epoch's number, which comes with all others."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    names = [tag for tag in found.Tags()["scalars"] if tag != "epoch"]
    scalars = {tag: [event.step for event in found.Scalars(tag)] for tag in names}
    return scalars | {tag: [event.step for event in found.Images(tag)] for tag in found.Tags()["images"]}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Any:
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "accident.py").write_text(ACCIDENT)

    def run(name: str, *args: str, **variables: str) -> Any:
        files = ["--config", str(QUICKSTART), "--config", "tiny.yaml"]
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", "fit", *files, "--run_name", name, *args],
            cwd=folder,
            env={
                **environment,
                "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")]),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,  # a run that waits for its tracker would wait for ever
        )
        return SimpleNamespace(code=done.returncode, err=done.stderr, folder=folder / "runs" / name / "version_0")

    run.folder = folder  # type: ignore[attr-defined]
    return run


def accident(**settings: Any) -> list[str]:
    given = [f"--trainer.callbacks.{name}={json.dumps(value)}" for name, value in settings.items()]
    return ["--trainer.callbacks+=accident.Kill", *given]


@pytest.fixture(scope="module")
def whole(command: Any) -> Any:
    """A run that nothing happens to."""
    run = command("whole")
    assert run.code == 0, run.err
    return run


@pytest.fixture(scope="module")
def resumed(command: Any) -> Any:
    """The same, killed twice: before W&B wrote anything, and after.

    It goes on from step 3 both times: from the checkpoint before the pictures, then from the one after them.
    """
    never = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "3600"}
    assert command("killed", *accident(step=8), **never).code == -signal.SIGKILL
    last = command.folder / "runs" / "killed" / "version_0" / "checkpoints" / "last.ckpt"
    assert LOGGED in torch.load(last, weights_only=True)
    assert command("killed", "--ckpt_path=last", *accident(step=11, wait=2.5)).code == -signal.SIGKILL
    assert LOGGED not in torch.load(last, weights_only=True)
    run = command("killed", "--ckpt_path=last")
    assert run.code == 0, run.err
    return run


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in rows]


def test_each_step_is_one_row(whole):
    rows = table(whole.folder)
    assert [row["step"] for row in rows] == list(range(12))
    assert all("train/loss_step" in row for row in rows)
    assert [row["step"] for row in rows if row.keys() >= {"train/loss_epoch", "val/loss"}] == [2, 5, 8, 11]


def test_a_killed_and_resumed_run_has_the_rows_of_one_that_was_not(whole, resumed):
    assert untimed(table(resumed.folder)) == untimed(table(whole.folder))


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_wandb_has_each_step_once_over_all_parts(request, name):
    run = request.getfixturevalue(name)
    rows = [row for part in parts(run.folder) for row in part]
    assert [row["_step"] for row in rows] == [row["trainer/global_step"] for row in rows] == list(range(12))
    for row, expected in zip(rows, untimed(table(run.folder)), strict=True):
        assert {key: row[key] for key in expected if key != "step"} == {
            k: v for k, v in expected.items() if k != "step"
        }
    of_digits = f": classes in turn: {', '.join(map(str, range(10)))}"
    for shown, what in (("samples.captions", of_digits), ("samples_animation.captions", "")):
        pictures = {row["_step"]: row[shown] for row in rows if shown in row}
        assert pictures == {step: [f"epoch={epoch:04d}{what}"] for epoch, step in enumerate((2, 5, 8, 11))}


def test_the_parts_are_of_one_run(resumed):
    folders = sorted((resumed.folder / "wandb").glob("offline-run-*"))
    run_id = torch.load(resumed.folder / "checkpoints" / "last.ckpt", weights_only=True)[KEY]["run_ids"]["WandbLogger"]
    assert [folder.name.split("-")[-1] for folder in folders] == [run_id] * 3
    assert parts(resumed.folder)[0] == []  # what W&B had not written is in a later part
    rows = [row for part in parts(resumed.folder) for row in part]
    names = [row["samples.filenames"][0] for row in rows if "samples.filenames" in row]
    names += [row["samples_animation.videos"][0]["path"] for row in rows if "samples_animation.videos" in row]
    pictures = [next(path for folder in folders for path in folder.rglob(Path(name).name)) for name in names]
    expected = [path for kind in ("png", "gif") for path in sorted((resumed.folder / "samples").glob(f"*.{kind}"))]
    assert len(expected) == 8
    assert [path.read_bytes() for path in pictures] == [path.read_bytes() for path in expected]


def test_tensorboard_has_no_event_twice(whole, resumed):
    found = events(resumed.folder / "tensorboard")
    assert found == events(whole.folder / "tensorboard")
    assert found["train/loss_step"] == list(range(12))
    assert found["val/loss"] == found["train/loss_epoch"] == found["samples"] == [2, 5, 8, 11]
    assert found["samples_animation"] == [2, 5, 8, 11]
    assert len(list(resumed.folder.glob("tensorboard/events.*"))) == 3


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that takes no key."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_whatever_fails_is_told_once_and_training_goes_on(command, whole, refusing):
    (command.folder / "file").write_text("no folder")
    run = command(
        "guests",
        *accident(step=4, goes_on=True),
        "--trainer.logger+=accident.Broken",
        "--trainer.logger+=lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.save_dir=file",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL=refusing,
    )
    assert run.code == 0, run.err
    assert run.err.count("W&B: the run is logged offline, since it cannot be online: ") == 1
    for name in ("WandbLogger", "Broken", "CSVLogger"):
        assert run.err.count(f"{name} failed and is left out from now on; training goes on: ") == 1
    assert "TensorBoardLogger failed" not in run.err
    assert "Traceback" not in run.err
    assert untimed(table(run.folder)) == untimed(table(whole.folder))
    for name in (f"samples/epoch={epoch:04d}.png" for epoch in range(4)):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert events(run.folder / "tensorboard") == events(whole.folder / "tensorboard")
