"""Runs of the real command that may be hurt, and what two runs must have in common to be the same."""

import csv
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusion_lightning.training.checkpoint_file import KEY

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"

# fifteen steps in three epochs, each followed by a validation and pictures; a checkpoint every other step, and
# before and after the pictures
TINY = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 3
  limit_train_batches: 5
  limit_val_batches: 2
  log_every_n_steps: 1
  logger: null
  precision: 32-true
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: misfortunes.Misfortunes
    - class_path: misfortunes.Record
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 4}
    - class_path: diffusion_lightning.LastCheckpoint
      init_args: {every_n_train_steps: 2, every_minutes: 0}
    - class_path: diffusion_lightning.BestCheckpoint
model:
  network:
    class_path: diffusion_lightning.UNet
    init_args: {channels: [8], middle_attention: false, embed_dim: 8, num_classes: 10, dropout: 0.2}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 8}}
"""


SELDOM = (
    "--trainer.callbacks=[{class_path: misfortunes.Misfortunes}, {class_path: misfortunes.Record}, "
    "{class_path: diffusion_lightning.SampleGrid, init_args: {num_samples: 4}}, "
    "{class_path: diffusion_lightning.BestCheckpoint}, {class_path: diffusion_lightning.LastCheckpoint}]"
)
"""An option for the same run with its checkpoint as seldom as by default: at the first epoch's end, and the last's."""


@dataclass
class Command:
    """``lightning fit`` of the tiny run with some options, in a folder of its own.

    Attributes:
        folder: where it is run.
        options: of every call.
        environment: of every call.
        configs: further files of the command line.
    """

    folder: Path
    options: tuple[str, ...]
    environment: dict[str, str]
    configs: tuple[Path, ...] = ()
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *more: str, **variables: str) -> subprocess.Popen[str]:
        """Begin, with more options and environment variables; the caller waits for the end."""
        files = (CONFIGS / "quickstart.yaml", *self.configs, self.folder / "tiny.yaml")
        config = [part for file in files for part in ("--config", str(file))]
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_lightning", "fit", *config, *self.options, *more],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *more: str, code: int = 0, **variables: str) -> str:
        """Run to the end, which must have this exit code; what it wrote to stderr."""
        process = self.start(*more, **variables)
        out, error = process.communicate(timeout=300)  # one that waits for another process would wait for ever
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{error}"
        return error

    def resume(self, *more: str, **kwargs: Any) -> str:
        """Go on where it stopped, or begin anew if it stopped before there was anything to go on with."""
        there = self.last.is_file()
        return self(*(("--ckpt_path", "last") if there else ()), *more, **kwargs)

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / "quickstart"

    @property
    def run(self) -> Path:
        """The folder of the newest run."""
        return max(self.runs.iterdir(), key=lambda path: path.stat().st_ctime_ns)

    @property
    def last(self) -> Path:
        return self.runs / "version_0" / "checkpoints" / "last.ckpt"


def make_command(
    folder: Path, environment: dict[str, str], *options: str, processes: int = 1, **variables: str
) -> Command:
    """A command in a folder that is made for it, with more options and environment variables."""
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY)
    search = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    configs = (CONFIGS / "overlays" / "ddp.yaml",) if processes > 1 else ()
    given = (*options, f"--trainer.devices={processes}")
    return Command(folder, given, {**environment, "PYTHONPATH": search, **variables}, configs)


def metrics(run: Path) -> dict[str, dict[int, list[str]]]:
    """What was logged: by name and step, the values in their order."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    with open(run / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name.startswith(("train/", "val/")):  # and not times, which differ
                    found[name][int(row["step"])].append(value)
    return found


def checkpoint(run: Path) -> dict[str, Any]:
    """The content of the last one."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values and tensors in nested dicts and lists, tensors as their type, shape and bits."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        yield name, (value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        yield name, value


PARTS = ("epoch", "global_step", "state_dict", "ema", "optimizer_states", "lr_schedulers")


def last_values(run: Path) -> dict[tuple[str, int], str]:
    """What was logged last under each name at each step."""
    return {(name, step): values[-1] for name, by_step in metrics(run).items() for step, values in by_step.items()}


def assert_same_run(run: Path, other: Path, only_here: tuple[tuple[str, int], ...] = ()) -> None:
    """Two runs ended in the same state, bit for bit, logged the same, drew the same and have the same best epoch.

    Args:
        run: the folder of a run.
        other: that of the other.
        only_here: names and steps that only the first logged.
    """
    one, two = checkpoint(run), checkpoint(other)
    assert one["global_step"] > 0
    for part in PARTS:
        first, second = dict(leaves(one[part])), dict(leaves(two[part]))
        assert first.keys() == second.keys()
        assert not [name for name in first if first[name] != second[name]], part
    for name in ("position", "skipped_steps", "epoch_losses"):
        assert one[KEY][name] == two[KEY][name]

    logged, values = metrics(run), last_values(run)
    assert values.keys() >= set(only_here)
    assert {key: value for key, value in values.items() if key not in only_here} == last_values(other)
    for by_step in logged.values():  # what was written twice is the same
        assert all(len(set(values)) == 1 for values in by_step.values())
    assert all(len(values) == 1 for values in logged["train/loss_step"].values())

    for pattern in ("samples/*.png", "loss_by_noise/*.png", "*.csv", "checkpoints/epoch=*.ckpt"):
        assert [path.name for path in sorted(run.glob(pattern))] == [path.name for path in sorted(other.glob(pattern))]
    for path in (*run.glob("samples/*.png"), *run.glob("loss_by_noise/*.png"), *run.glob("loss_by_noise.csv")):
        assert path.read_bytes() == (other / path.relative_to(run)).read_bytes()
