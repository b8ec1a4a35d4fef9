"""What is there to see of a run: in W&B, in TensorBoard and on disk, the same pictures, and each once."""

import csv
import io
import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from wandb_records import wandb_records

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")

TINY = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  limit_train_batches: 4
  limit_val_batches: 2
  num_sanity_val_steps: 1
  log_every_n_steps: 1
  precision: 32-true
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 5, animate: last}
    - class_path: diffusion_lightning.DenoisingProcess
      init_args: {num_samples: 2}
    - class_path: diffusion_lightning.LossByNoise
      init_args: {num_bins: 6}
    - class_path: diffusion_lightning.FIDCallback
      init_args: {num_samples: 12}
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
  sampler: {init_args: {steps: 3}}
data: {init_args: {batch_size: 16}}
"""
WATCHED = """
trainer:
  logger:
    - class_path: diffusion_lightning.WandbLogger
      init_args: {name: the name, project: the project, group: the group, tags: [one, two], notes: why it is run}
    - class_path: diffusion_lightning.TensorBoardLogger
"""
UNWATCHED = "trainer: {logger: null}"
TWO = "trainer: {devices: 2, strategy: ddp}\ndata: {init_args: {batch_size: 8}}"

PICTURES = {
    *(("samples", 0), ("denoising", 0), ("loss_by_noise", 0)),
    *(("samples", 1), ("samples_animation", 1), ("denoising", 1), ("loss_by_noise", 1)),
}
"""Names and epochs."""

VALUES = {
    *("train/loss_step", "train/lr", "train/gradient_norm", "train/ema_decay", "train/skipped_steps"),
    *("perf/examples_per_s", "perf/examples_per_s_rank", "perf/memory_gb"),
}
"""Logged at each of the eight steps."""

EPOCHS_VALUES = {
    *("train/loss_epoch", "val/loss_unconditional", "val/loss", "fid/digits@12", "kid/digits@12"),
    *(f"{share}/{of}" for share in ("agreement", "legible") for of in ("digits@12", "digits_real@1000")),
    *("agreement_error/digits@12", "legible_error/digits@12"),
    *(f"time/{part}" for part in ("data", "step", "sampling", "evaluation", "checkpoint", "other")),
}
"""Logged with the last step of each epoch."""


class Run:
    """A finished run's folder, in a repository, and what was said."""

    def __init__(self, folder: Path, commit: str, command: list[str]) -> None:
        self.folder, self.commit, self.command = folder, commit, command

    @property
    def wandb(self) -> Path:
        (folder,) = (self.folder / "wandb").glob("offline-run-*")
        return folder

    def records(self, kind: str) -> list[Any]:
        (path,) = self.wandb.glob("*.wandb")
        return [getattr(r, kind) for r in wandb_records(path) if r.WhichOneof("record_type") == kind]

    def history(self) -> list[tuple[int, dict[str, Any]]]:
        """W&B's rows: the step, and the values by name, with a dot between a name and what is below it."""
        return [
            (
                record.step.num,
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.item},
            )
            for record in self.records("history")
        ]

    def events(self) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

        found = EventAccumulator(str(self.folder / "tensorboard"), size_guidance={IMAGES: 0, SCALARS: 0})
        found.Reload()
        return found

    def files(self, pattern: str) -> dict[tuple[str, int], Path]:
        """Pictures on disk by name and epoch."""
        return {
            (path.parent.name + "_animation" * (path.suffix == ".gif"), int(path.stem.removeprefix("epoch="))): path
            for path in self.folder.glob(pattern)
        }


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Any:
    folder = tmp_path_factory.mktemp("watching")
    for name in ("tiny", "watched", "unwatched", "two"):
        (folder / f"{name}.yaml").write_text(globals()[name.upper()])
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "tiny.yaml"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)

    def run(name: str, *configs: str, where: str = "runs", more: tuple[str, ...] = ()) -> Run:
        files = [part for config in (QUICKSTART, "tiny.yaml", *configs) for part in ("--config", config)]
        command = ["fit", *files, "--run_name", name, "--trainer.default_root_dir", where, *more]
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", *command],
            cwd=folder,
            env={**environment, "WANDB_MODE": "offline"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return Run(folder / where / name / "version_0", head.stdout.strip(), ["lightning", *command])

    return run


@pytest.fixture(scope="module")
def watched(fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, with W&B and TensorBoard; its folder is not in the repository."""
    return fit("watched", "watched.yaml", where=str(tmp_path_factory.mktemp("elsewhere")))


@pytest.fixture(scope="module")
def unwatched(fit: Any) -> Run:
    """The same without any logger."""
    return fit("unwatched", "unwatched.yaml")


@pytest.fixture(scope="module")
def two(fit: Any) -> Run:
    """Two processes that train on the same batches as the one."""
    return fit("two", "watched.yaml", "two.yaml")


@pytest.fixture(params=["watched", "two"])
def logged(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


# ---- pictures


@pytest.mark.parametrize("name", ["watched", "unwatched", "two"])
def test_the_pictures_on_disk(request, name):
    run = request.getfixturevalue(name)
    assert run.files("*/epoch=*.*").keys() - {("checkpoints", 0), ("checkpoints", 1)} == PICTURES
    assert not list(run.folder.rglob("*.part"))


def test_wandb_has_each_picture_once_as_it_is_on_disk(logged):
    shown: Counter[tuple[str, int]] = Counter()
    files = logged.files("*/epoch=*.*")
    for step, row in logged.history():
        for key, captions in row.items():
            if key.endswith(".captions"):
                name, (caption,) = key.removesuffix(".captions"), captions
                epoch = int(caption.partition(": ")[0].removeprefix("epoch="))
                assert step == 4 * epoch + 3
                shown[name, epoch] += 1
                media = next(logged.wandb.rglob(f"media/*/{name}_{step}_*"))
                assert media.read_bytes() == files[name, epoch].read_bytes()
                assert row[f"{name}._type"] == ("videos" if media.suffix == ".gif" else "images/separated")
    assert shown == Counter(dict.fromkeys(PICTURES, 1))
    assert len(list(logged.wandb.rglob("media/images/*"))) == 6
    assert len(list(logged.wandb.rglob("media/videos/*"))) == 1


def test_tensorboard_has_each_picture_once_as_it_is_on_disk(logged):
    events, files = logged.events(), logged.files("*/epoch=*.*")
    shown = Counter((tag, event.step // 4) for tag in events.Tags()["images"] for event in events.Images(tag))
    assert shown == Counter(dict.fromkeys(PICTURES, 1))
    for tag in events.Tags()["images"]:
        for event in events.Images(tag):
            path = files[tag, event.step // 4]
            if path.suffix == ".gif":
                assert event.encoded_image_string == path.read_bytes()
            with Image.open(io.BytesIO(event.encoded_image_string)) as there, Image.open(path) as here:
                assert (event.width, event.height) == here.size
                assert np.array_equal(np.array(there.convert("RGB")), np.array(here.convert("RGB")))


@pytest.mark.parametrize("name", ["watched", "unwatched", "two"])
def test_the_animation_ends_with_the_grid(request, name):
    folder = request.getfixturevalue(name).folder / "samples"
    with Image.open(folder / "epoch=0001.gif") as animation, Image.open(folder / "epoch=0001.png") as grid:
        assert animation.n_frames == 4  # three steps
        animation.seek(3)
        assert np.array_equal(np.array(animation.convert("RGB")), np.array(grid))


def test_the_pictures_do_not_depend_on_who_looks(watched, unwatched):
    theirs = unwatched.files("*/epoch=*.*")
    for key, path in watched.files("*/epoch=*.*").items():
        if key[0] != "checkpoints":
            assert path.read_bytes() == theirs[key].read_bytes()


# ---- values


def test_each_value_is_logged_once(logged):
    steps, epochs = range(8), (3, 7)
    expected = Counter(
        {(name, step): 1 for name in VALUES for step in steps}
        | {(name, step): 1 for name in EPOCHS_VALUES for step in epochs}
    )
    names = VALUES | EPOCHS_VALUES

    history = logged.history()
    assert [step for step, _ in history] == list(steps)
    assert Counter((key, step) for step, row in history for key in row if key in names) == expected

    with open(logged.folder / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [row["step"] for row in lines] == [str(step) for step in steps]
    assert Counter((k, int(row["step"])) for row in lines for k, v in row.items() if v and k in names) == expected
    assert set(lines[0]) == names | {"step", "epoch"}

    events = logged.events()
    assert Counter((tag, e.step) for tag in names for e in events.Scalars(tag)) == expected
    assert set(events.Tags()["scalars"]) == names | {"epoch", "hp_metric"}
    assert len(list((logged.folder / "tensorboard").glob("events.*"))) == 1


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "loss_by_noise.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_loss_by_noise_is_that_of_all_processes(watched, two):
    one, both = losses(watched.folder), losses(two.folder)
    assert len(one) == 2 * 2 * 6
    assert sum(int(row["examples"]) for row in one) == 2 * (4 + 2) * 16
    for mine, theirs in zip(one, both, strict=True):
        assert {k: v for k, v in mine.items() if k != "loss"} == {k: v for k, v in theirs.items() if k != "loss"}
        assert float(theirs["loss"] or -1) == pytest.approx(float(mine["loss"] or -1), rel=1e-3)


def test_wandb_has_the_loss_by_noise_as_a_table(logged):
    rows = losses(logged.folder)
    for step, row in logged.history():
        assert ("loss_by_noise_table._type" in row) == (step in (3, 7))
        if step in (3, 7):
            table = json.loads((logged.wandb / "files" / row["loss_by_noise_table.path"]).read_text())
            assert table["columns"] == list(rows[0])
            mine = [["" if value is None else str(value) for value in line] for line in table["data"]]
            assert mine == [list(line.values()) for line in rows if line["epoch"] == str(step // 4)]


# ---- what the run is


def test_wandb_has_what_the_config_says_of_the_run(logged):
    run = logged.records("run")[-1]
    assert (run.display_name, run.project, run.run_group, run.notes) == (
        "the name", "the project", "the group", "why it is run",
    )  # fmt: skip
    assert sorted(run.tags) == ["one", "two"]
    assert run.git.commit == logged.commit


def test_wandb_has_the_whole_config_and_the_environment(logged):
    config = {item.key: json.loads(item.value_json) for r in logged.records("config") for item in r.update}
    assert config["config"] == yaml.safe_load((logged.folder / "config.yaml").read_text())
    environment = yaml.safe_load((logged.folder / "environment.yaml").read_text())
    packages = environment.pop("packages")
    assert config["environment"] == environment
    assert config["network"]["init_args"]["channels"] == [8]
    assert packages["torch"]
    assert (logged.wandb / "files" / "requirements.txt").stat().st_size > 0


def test_the_environment_on_disk(watched, unwatched, two):
    for run, processes in ((watched, 1), (unwatched, 1), (two, 2)):
        found = yaml.safe_load((run.folder / "environment.yaml").read_text())
        assert found["git"] == {"commit": run.commit, "dirty": False}
        assert found["devices"]["processes"] == processes
        assert shlex.split(found["command"]) == run.command


def test_wandbs_own_tool_can_sync_it(logged, environment):
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", str(logged.wandb)],
        env={**environment, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "false"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert logged.wandb.name in done.stdout + done.stderr
