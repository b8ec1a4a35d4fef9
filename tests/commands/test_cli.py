"""The `lightning` command: a run from its start through a resume to samples, and every mistake a user can make."""

import base64
import csv
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import wandb
import yaml
from lightning.pytorch import Callback
from PIL import Image
from tiny_run import DEBUG, QUICKSTART, QUIET, TINY, failure, tree
from torch._utils import ExceptionWrapper
from wandb_records import wandb_records

from diffusion_lightning import ScoreModule, UNet, cli
from diffusion_lightning.commands.usage import UsageError, explain
from diffusion_lightning.images import to_uint8
from diffusion_lightning.training.checkpoint_file import KEY
from diffusion_lightning.training.trained import TrainedModel


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def wandb_run(folder: Path) -> Any:
    """What is in an offline run: id, name, commit, config, and the logged values by name, each with its step."""
    (path,) = folder.glob("*.wandb")
    found = SimpleNamespace(id=None, name=None, commit=None, config={}, history=[])
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.id, found.name, found.commit = record.run.run_id, record.run.display_name, record.run.git.commit
        elif kind == "config":
            found.config.update({item.key: json.loads(item.value_json) for item in record.config.update})
        elif kind == "history":
            values: dict[str, Any] = {}
            for item in record.history.item:
                *parents, last = [item.key] if item.key else list(item.nested_key)
                place = values
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = json.loads(item.value_json)
            found.history.append(values)
    return found


def wandb_id(folder: Path) -> str:
    """The W&B run id that a run's last checkpoint holds."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[KEY]["run_ids"]["WandbLogger"]


# ---- a run, its resume, another run


class Runs:
    """A folder in which commands are run as a user would, as processes of their own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder / "work", environment
        self.copies = folder / "copies"
        self.folder.mkdir()
        self.version_0 = self.folder / "runs" / "quickstart" / "version_0"
        self.last = str(self.version_0 / "checkpoints" / "last.ckpt")

    def __call__(self, program: str, *args: str) -> Any:
        scripts = Path(sys.executable).parent
        start = [sys.executable, "-m", "diffusion_lightning"] if program == "module" else [str(scripts / program)]
        # nobody is there to answer a question
        return subprocess.run(
            [*start, *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def state(self, name: str, done: Any) -> Any:
        """What a command said, and a copy of the first run's folder as it left it."""
        folder = self.copies / name / "runs" / "quickstart" / "version_0"
        shutil.copytree(self.version_0, folder, symlinks=True)
        beside = {path.name for path in self.folder.iterdir()}
        return SimpleNamespace(out=done.stdout, err=done.stderr, folder=folder, files=tree(folder), beside=beside)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("cli"), environment)
    (runs.folder / "tiny.yaml").write_text(TINY)
    (runs.folder / "quiet.yaml").write_text(QUIET)
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=runs.folder, check=True)
    return runs


@pytest.fixture(scope="module")
def first(runs: Runs) -> Any:
    """The first run, by the installed script."""
    done = runs("lightning", "fit", "--config", QUICKSTART, "--config", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return runs.state("first", done)


@pytest.fixture(scope="module")
def resumed(runs: Runs, first: Any) -> Any:
    """The first run resumed, by the very command that it ended with."""
    (line,) = (line for line in first.out.splitlines() if line.startswith("  resume "))
    program, *args = shlex.split(line)[1:]
    assert program == "lightning"
    done = runs("module", *args)
    assert done.returncode == 0, done.stderr
    return runs.state("resumed", done)


@pytest.fixture(scope="module")
def second(runs: Runs, resumed: Any) -> Any:
    """Another run of the same recipe."""
    done = runs("module", "fit", "--config", QUICKSTART, "--config", DEBUG, "--trainer.accelerator", "cpu")
    assert done.returncode == 0, done.stderr
    return runs.state("second", done)


def test_a_run_leaves_its_folder(runs, first):
    names = {name for name in first.files if not name.startswith("wandb/")}
    assert names == {
        "config.yaml",
        "environment.yaml",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "checkpoints/epoch=0000.ckpt",
        "samples/epoch=0000.png",
    }
    assert first.beside == {".git", "quiet.yaml", "runs", "tiny.yaml"}
    with Image.open(first.folder / "samples" / "epoch=0000.png") as picture:
        assert picture.size == (3 * 30 + 2, 2 * 30 + 2)

    config = yaml.safe_load((first.folder / "config.yaml").read_text())
    assert config["run_name"] == "quickstart"
    assert config["model"]["network"]["init_args"]["channels"] == [8]
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-2
    assert config["trainer"]["limit_train_batches"] == 3
    assert config["ckpt_path"] is None

    table = rows(first.folder)
    assert [row["step"] for row in table if "train/loss_step" in row] == ["0", "1", "2"]
    for name in ("train/loss_epoch", "val/loss", "fid/digits@12"):
        (row,) = (row for row in table if name in row)
        assert row["step"] == "2"
        assert float(row[name]) > 0


def test_the_last_lines_say_what_to_do_next(runs, first):
    lines = first.out[first.out.index("Done after 3 steps") :].splitlines()
    assert lines[0].endswith("everything is in runs/quickstart/version_0")
    said = dict(line.split(maxsplit=1) for line in lines[1:6])
    assert said.keys() == {"result", "pictures", "W&B", "sample", "resume"}
    assert "fid/digits@12 " in said["result"]
    assert "val/loss " in said["result"]
    assert (runs.folder / said["pictures"]).is_file()
    assert said["W&B"].startswith("wandb sync ")
    assert (runs.folder / said["W&B"].split()[2]).is_dir()
    assert "W&B: not logged in, so the run is logged offline" in first.err
    assert "Traceback" not in first.err
    assert (first.out + first.err).count("wandb sync ") == 1


def test_no_escape_code_is_in_a_file(first, resumed):
    assert "\x1b" not in first.out + first.err + resumed.out + resumed.err


def test_a_start_says_nothing_that_nobody_can_act_on_and_nothing_twice(first, resumed):
    for said in (first, resumed):
        text = said.out + said.err
        assert not re.search("deprecated|Modules in|logging interval|TPU|Tip:|args parameter|is not empty", text), text
        start = said.err.partition("`Trainer.fit` stopped")[0]
        lines = [line for line in start.split("\n") if line.strip() and "\r" not in line]
        assert len(set(lines)) == len(lines), lines
        assert len(re.findall(r"^network: UNet, [\d,]+ weights to train", said.err, re.MULTILINE)) == 1


def test_the_bars_show_loss_rate_and_time_left(first):
    (bar, *_) = (part for part in first.out.splitlines()[::-1] if part.startswith("Epoch 0: 100%"))
    assert all(word in bar for word in ("train/loss_step=", "images/s=", "left=00:00"))
    assert "DPMSolverPlusPlus:" in first.err
    assert "fid/digits@12:" in first.err


def test_the_sampling_command_it_names_works(runs, first, monkeypatch, capsys):
    monkeypatch.chdir(runs.folder)
    (line,) = (line for line in first.out.splitlines() if line.startswith("  sample "))
    program, *args = shlex.split(line)[1:]
    assert program == "lightning"
    cli.main(args)
    assert "64 samples in" in capsys.readouterr().out
    with Image.open("samples.png") as picture:
        assert picture.size == (242, 242)


def test_the_wandb_run_holds_it_all(runs, first):
    (folder,) = (first.folder / "wandb").glob("offline-run-*")
    run = wandb_run(folder)
    assert len(run.id) == 8
    assert folder.name.endswith(run.id)
    assert run.name == "quickstart/version_0"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=runs.folder, capture_output=True, text=True).stdout.strip()
    assert run.commit == head
    assert run.config["config"]["model"]["sampler"]["init_args"]["steps"] == 2
    assert run.config["config"]["seed_everything"] == 0

    in_csv = {(k, row["step"]): float(v) for row in rows(first.folder) for k, v in row.items() if k != "step"}
    in_wandb = {
        (k, str(values["trainer/global_step"])): v
        for values in run.history
        for k, v in values.items()
        if k.startswith(("train/", "val/", "fid/", "kid/", "agreement", "legible", "perf/", "time/", "epoch"))
    }
    assert {("train/loss_step", "0"), ("val/loss", "2"), ("fid/digits@12", "2")} <= in_wandb.keys()
    assert in_wandb == pytest.approx(in_csv)

    (samples,) = (values["samples"] for values in run.history if "samples" in values)
    assert samples["captions"] == ["epoch=0000: classes in turn: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]
    (name,) = samples["filenames"]
    logged = (folder / "files" / name).read_bytes()
    assert logged == (first.folder / "samples" / "epoch=0000.png").read_bytes()


def test_the_checkpoint_can_be_read_without_running_code(runs, first):
    for path in (first.folder / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        assert (checkpoint["epoch"], checkpoint["global_step"]) == (0, 3)
    (folder,) = (first.folder / "wandb").glob("offline-run-*")
    assert wandb_id(first.folder) == folder.name.split("-")[-1]


def test_a_resumed_run_goes_on_in_its_folder(runs, first, resumed):
    assert "Done after 6 steps; everything is in runs/quickstart/version_0" in resumed.out
    assert "--trainer.max_epochs 4" in resumed.out

    names = {name for name in resumed.files if not name.startswith("wandb/")}
    best = {name for name in names if name.startswith("checkpoints/epoch=")}
    assert len(best) == 1
    assert names - best == {
        "config.yaml",
        "config.before_resume_0.yaml",
        "environment.yaml",
        "environment.before_resume_0.yaml",
        "metrics.csv",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "samples/epoch=0000.png",
        "samples/epoch=0001.png",
    }
    assert resumed.files["samples/epoch=0000.png"] == first.files["samples/epoch=0000.png"]
    assert resumed.files["config.before_resume_0.yaml"] == first.files["config.yaml"]
    assert resumed.files["environment.before_resume_0.yaml"] == first.files["environment.yaml"]
    (line,) = (line for line in first.out.splitlines() if line.startswith("  resume "))
    environment = yaml.safe_load((resumed.folder / "environment.yaml").read_text())
    assert environment["command"] == line.split(maxsplit=1)[1]
    config = yaml.safe_load((resumed.folder / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["ckpt_path"] is None  # it describes the run, not how a part of it was started

    checkpoint = torch.load(resumed.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"], checkpoint["ema"]["num_updates"]) == (1, 6, 6)

    table = rows(resumed.folder)
    logged = [(name, row["step"], row["epoch"]) for row in table for name in row if name not in ("step", "epoch")]
    assert len(set(logged)) == len(logged)
    assert [entry[1:] for entry in logged if entry[0] == "train/loss_step"] == [
        ("0", "0"), ("1", "0"), ("2", "0"), ("3", "1"), ("4", "1"), ("5", "1"),
    ]  # fmt: skip
    assert [entry[1:] for entry in logged if entry[0] == "fid/digits@12"] == [("2", "0"), ("5", "1")]


def test_the_best_checkpoint_is_the_one_of_the_lower_fid(runs, resumed):
    fids = [float(row["fid/digits@12"]) for row in rows(resumed.folder) if "fid/digits@12" in row]
    assert (resumed.folder / "checkpoints" / f"epoch={fids.index(min(fids)):04d}.ckpt").is_file()


def test_the_pieces_of_a_resumed_run_are_one_wandb_run(runs, resumed):
    pieces = sorted((resumed.folder / "wandb").glob("offline-run-*"))
    assert len(pieces) == 2
    before, after = (wandb_run(piece) for piece in pieces)
    assert before.id == after.id == wandb_id(resumed.folder)
    assert before.name == after.name
    steps = [[v["trainer/global_step"] for v in run.history if "train/loss_step" in v] for run in (before, after)]
    assert steps == [[0, 1, 2], [3, 4, 5]]


def test_the_report_of_the_resumed_run_knows_where_it_comes_from(runs, resumed, tmp_path, capsys):
    cli.main(["report", str(resumed.folder), "--output", str(tmp_path / "report.html")])
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=runs.folder, capture_output=True, text=True).stdout.strip()
    assert f"<code>{head}</code>" in page
    assert f"torch=={torch.__version__.partition('+')[0]}" in page
    assert "started and resumed, 2 parts" in page
    assert "Settings changed by resume 1" in page
    for epoch in (0, 1):
        picture = (resumed.folder / "samples" / f"epoch={epoch:04d}.png").read_bytes()
        assert base64.b64encode(picture).decode() in page
    assert tree(resumed.folder) == resumed.files


def test_another_run_takes_the_next_version_and_touches_no_other(runs, resumed, second):
    assert second.files == resumed.files
    version_1 = runs.folder / "runs" / "quickstart" / "version_1"
    assert "everything is in runs/quickstart/version_1" in second.out
    assert (version_1 / "checkpoints" / "last.ckpt").is_file()
    assert (version_1 / "samples" / "epoch=0000.png").is_file()
    (folder,) = (version_1 / "wandb").glob("offline-run-*")
    assert wandb_run(folder).id == wandb_id(version_1) != wandb_id(second.folder)


# ---- what is done with a checkpoint


@pytest.fixture
def here(runs: Runs, first: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Path:
    """This process works where the runs are, with their cache."""
    monkeypatch.chdir(runs.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    return runs.folder


SAMPLERS = {
    "Heun": ("--sampler.steps", "3"),
    "EulerMaruyama": ("--sampler.steps", "4"),
    "PredictorCorrector": ("--sampler.steps", "2", "--sampler.corrector", "LangevinCorrector", "--sampler.snr", "0.1"),
    "ProbabilityFlowODE": ("--sampler.method", "heun2", "--sampler.steps", "2"),
}
NFE = {"Heun": 5, "EulerMaruyama": 4, "PredictorCorrector": 4, "ProbabilityFlowODE": 5}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample(runs, here, tmp_path, capsys, sampler):
    def draw(name: str, seed: int, *more: str) -> Path:
        output = tmp_path / name
        common = ["--ckpt_path", runs.last, "--num", "5", "--seed", str(seed), "--output", str(output)]
        common += ["--quiet", "--device", "cpu", "--guidance", "null"]
        cli.main(["sample", *common, "--sampler", sampler, *SAMPLERS[sampler], *more])
        return output

    before = tree(here)
    grid = draw("a.png", 1)
    said = capsys.readouterr().out
    assert said.startswith("5 samples in ")
    assert "images/s" in said
    assert f"{sampler}, {NFE[sampler]} NFE, EMA weights" in said
    assert draw("b.png", 1).read_bytes() == grid.read_bytes()
    assert draw("c.png", 2).read_bytes() != grid.read_bytes()

    images = np.load(draw("a.npz", 1))["samples"]
    assert images.shape == (5, 28, 28, 1)
    assert images.dtype == np.uint8
    files = sorted(draw("folder", 1).iterdir())
    assert [file.name for file in files] == [f"{n:06d}.png" for n in range(5)]
    with Image.open(grid) as picture:
        pixels = np.asarray(picture)
    for n, file in enumerate(files):
        with Image.open(file) as picture:
            single = np.asarray(picture)
        assert np.array_equal(single, images[n, :, :, 0])
        top, left = 2 + 30 * (n // 3), 2 + 30 * (n % 3)
        assert np.array_equal(single, pixels[top : top + 28, left : left + 28, 0])
    assert tree(here) == before


def test_sample_uses_the_ema_weights_and_the_checkpoints_sampler(runs, here, tmp_path):
    cli.main(
        [
            "sample",
            "--ckpt_path",
            runs.last,
            "--num",
            "2",
            "--seed",
            "3",
            "--output",
            str(tmp_path / "a.npz"),
            "--device",
            "cpu",
            "--precision",
            "32-true",
        ]
    )
    module = ScoreModule.load_from_checkpoint(runs.last)
    drawn = module.sample(num=2, generator=torch.Generator().manual_seed(3))
    expected = (drawn * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(np.load(tmp_path / "a.npz")["samples"], expected.numpy())
    for weight in (p for p in module.network.parameters() if p.requires_grad):
        weight.data.add_(1)  # its own weights do not matter
    assert torch.equal(module.sample(num=2, generator=torch.Generator().manual_seed(3)), drawn)


def test_samples_that_are_not_finite_are_marked_and_told_of(runs, here, tmp_path, capsys, monkeypatch):
    original = TrainedModel.sample

    def sample(*args, **kwargs):
        samples = original(*args, **kwargs)
        samples[1, 0, 0, 0] = torch.nan
        return samples

    monkeypatch.setattr(TrainedModel, "sample", sample)
    with pytest.warns(UserWarning, match=r"1 of 3 samples are not finite .*; .*a shows each as a tile with a cross"):
        cli.main(["sample", "--ckpt_path", runs.last, "--num", "3", "--output", str(tmp_path / "a"), "--quiet"])
    pictures = [np.asarray(Image.open(tmp_path / "a" / f"{n:06d}.png")) for n in range(3)]
    cross = to_uint8(torch.full((1, 28, 28), torch.nan))[0].numpy()
    assert [np.array_equal(picture, cross) for picture in pictures] == [False, True, False]


def test_samples_none_of_which_is_finite_are_an_error(runs, here, tmp_path, capsys):
    (tmp_path / "a.png").write_text("earlier samples")
    args = ("--sampler", "PredictorCorrector", "--sampler.snr", "1e20", "--sampler.steps", "4")
    said = failure(
        capsys, "sample", "--ckpt_path", runs.last, "--num", "3", "--quiet", "--output", str(tmp_path / "a.png"), *args
    )
    assert "all 3 samples are not finite (NaN or infinite)" in said
    assert "a smaller snr): nothing is written" in said
    assert (tmp_path / "a.png").read_text() == "earlier samples"


def test_sample_shows_its_progress(runs, here, tmp_path, capsys):
    args = ["sample", "--ckpt_path", runs.last, "--num", "3", "--batch_size", "2", "--output", str(tmp_path / "a.png")]
    cli.main(args)
    shown = capsys.readouterr().err
    assert "images:" in shown
    assert "DPMSolverPlusPlus:" in shown
    cli.main([*args, "--quiet"])
    assert capsys.readouterr().err == ""


def test_predict_writes_single_pictures_and_never_over_others(runs, here, capsys):
    config = str(runs.version_0 / "config.yaml")
    args = ["predict", "--config", config, "--config", "quiet.yaml", "--ckpt_path", "last", "--data.num_predict", "5"]
    cli.main(args)
    folder = runs.version_0 / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:06d}.png" for n in range(5)]
    before = tree(here)
    assert "already holds pictures" in failure(capsys, *args)
    assert tree(here) == before
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(("command", "name"), [("validate", "val/loss"), ("test", "test/loss")])
def test_validate_and_test_measure_and_write_nothing(runs, here, capsys, command, name):
    before = tree(here)
    config = str(runs.version_0 / "config.yaml")
    cli.main(
        [
            command,
            "--config",
            config,
            "--ckpt_path",
            "last",
            f"--trainer.limit_{name[:-5]}_batches",
            "1",
        ]
    )
    shown = capsys.readouterr().out
    assert name in shown
    assert "fid/digits@12" in shown
    assert tree(here) == before


# ---- the ways of resuming, in this process


STOPPED = json.dumps(  # after the second epoch, as no value can be better than the first
    {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 1e9}}
)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs `lightning fit` on tiny settings in tmp_path, in this process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(Path(QUICKSTART).read_text())
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "quiet.yaml").write_text(QUIET)

    def run(*args: str) -> Path:
        config = [part for name in ("digits", "tiny", "quiet") for part in ("--config", f"{name}.yaml")]
        cli.main(["fit", *config, *args])
        return tmp_path / "runs"

    run.folder = tmp_path
    return run


def test_last_is_the_newest_run_of_the_recipe(fit):
    fit()
    fit()
    old = tree(fit.folder / "runs" / "digits" / "version_0")
    fit("--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert sorted(path.name for path in (fit.folder / "runs" / "digits").iterdir()) == ["version_0", "version_1"]
    assert tree(fit.folder / "runs" / "digits" / "version_0") == old
    last = fit.folder / "runs" / "digits" / "version_1" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 6


def test_a_checkpoint_of_another_run_starts_a_new_one(fit):
    fit("--run_name", "a/first")
    before = tree(fit.folder / "runs" / "a" / "first")
    last = "runs/a/first/version_0/checkpoints/last.ckpt"
    fit("--run_name", "other", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert tree(fit.folder / "runs" / "a" / "first") == before
    assert [row["step"] for row in rows(fit.folder / "runs" / "other" / "version_0") if "train/loss_step" in row] == [
        "3",
        "4",
        "5",
    ]
    fit("--run_name", "a/first", "--ckpt_path", last, "--trainer.max_epochs", "2")  # and its own goes on
    assert [path.name for path in (fit.folder / "runs" / "a" / "first").iterdir()] == ["version_0"]


def test_a_learning_rate_that_is_changed_on_a_resume_is_the_one_that_trains(fit, caplog):
    adamw = ("--model.optimizer", "torch.optim.AdamW", "--model.lr_scheduler", "null", "--model.optimizer.lr")
    fit(*adamw, "0.001")
    with caplog.at_level("INFO"):
        fit(*adamw, "0.0001", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    said = [record.getMessage() for record in caplog.records]
    assert said.count("resumed: model.optimizer.lr was 0.001, is 0.0001 from step 3 on") == 1
    folder = fit.folder / "runs" / "digits" / "version_0"
    assert {row["train/lr"] for row in rows(folder) if int(row["step"]) >= 3 and "train/lr" in row} == {"0.0001"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.0001
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.0001


def test_an_old_run_goes_on_in_the_features_that_it_was_begun_in(fit, environment, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])

    def callbacks(feature: str) -> tuple[str, str]:
        fid = {"class_path": "FIDCallback", "init_args": {"num_samples": 4, "feature": feature}}
        stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "fid/mnist@4", "patience": 9}}
        return "--trainer.callbacks", json.dumps([fid, stop])

    fit(*callbacks("mnist"))
    with caplog.at_level("INFO"):
        fit(*callbacks("auto"), "--ckpt_path", "last", "--trainer.max_epochs", "2")
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("FIDCallback: feature=auto stays mnist, ") for line in said) == 1
    table = rows(fit.folder / "runs" / "digits" / "version_0")
    assert [row["step"] for row in table if "fid/mnist@4" in row] == ["2", "5"]
    assert not any("digits@" in name for row in table for name in row)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ("--model.optimizer", "torch.optim.SGD"),
            "model.optimizer=SGD: the checkpoint has the state of Muon, of which",
        ),
        (("--model.sde.sigma_max", "50"), "model.sde.sigma_max=50.0: the checkpoint was trained with 80.0, and its"),
    ],
)
def test_what_cannot_be_changed_on_a_resume_is_refused_before_anything_is_written(fit, capsys, asked, said):
    fit()
    before = tree(fit.folder / "runs")
    with pytest.raises(SystemExit):
        fit(*asked, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert f"lightning: error: {said}" in capsys.readouterr().err
    assert tree(fit.folder / "runs") == before


def test_a_recipe_that_leaves_out_what_it_can_resumes_too(fit):
    """The defaults, some of them objects, must survive being written to config.yaml."""
    (fit.folder / "least.yaml").write_text(
        "model:\n"
        "  network: {class_path: UNet, init_args: {channels: [4], middle_attention: false, embed_dim: 8}}\n"
        "  sde: VPSDE\n"
        "  parameterization: NoisePrediction\n"
        "  sampler: {class_path: PredictorCorrector, init_args: {steps: 2}}\n"
        "data: {class_path: EmbeddedMNIST, init_args: {batch_size: 4}}\n"
        "trainer: {max_epochs: 1, limit_train_batches: 1, limit_val_batches: 1}\n"
    )
    common = ["--config", "quiet.yaml"]
    cli.main(["fit", "--config", "least.yaml", *common])
    config = "runs/least/version_0/config.yaml"
    cli.main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    last = fit.folder / "runs" / "least" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_trial_run_leaves_nothing(fit):
    before = tree(fit.folder)
    fit("--trainer.fast_dev_run", "true")
    assert tree(fit.folder) == before


LENGTHS = {  # what a run is given, and what the line that it prints asks for beside its config
    "epochs": (["--trainer.max_epochs", "1"], ["--trainer.max_epochs", "2"]),
    "steps": (["--trainer.max_epochs", "9", "--trainer.max_steps", "4"], ["--trainer.max_steps", "8"]),
    "both": (
        ["--trainer.max_epochs", "1", "--trainer.max_steps", "3"],
        ["--trainer.max_epochs", "2", "--trainer.max_steps", "6"],
    ),
    "time": (["--trainer.max_epochs", "9", "--trainer.max_time", "00:00:00:15"], []),
    "time, in the last epoch": (["--trainer.max_epochs", "1", "--trainer.max_time", "00:00:00:15"], []),
    "early": (["--trainer.max_epochs", "9", "--trainer.callbacks", STOPPED], []),
}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_line_that_is_printed_goes_on_with_what_the_config_wanted(fit, capsys, monkeypatch, length):
    """And makes steps when it is typed; a timer's clock goes on by ten seconds whenever it looks."""
    given, more = LENGTHS[length]
    ticks = itertools.count(0, 10)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    fit(*given)
    last, steps = fit.folder / "runs" / "digits" / "version_0" / "checkpoints" / "last.ckpt", [0]
    for _ in range(2):
        steps.append(torch.load(last, weights_only=True)["global_step"])
        assert steps[-1] > steps[-2]
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  resume "))
        program, *args = shlex.split(line)[1:]
        assert program == "lightning"
        if len(steps) == 2:
            assert args[:2] == ["fit", "--config"]
            assert args[3:] == ["--ckpt_path", "last", *more]
            cli.main(args)


@pytest.mark.parametrize(("option", "epochs"), [("max_epochs", "2"), ("max_steps", "9")])
def test_a_run_with_nothing_left_to_do_says_so_and_what_to_type(fit, capsys, option, epochs):
    fit("--trainer.max_epochs", epochs, f"--trainer.{option}", "2", "--trainer.limit_train_batches", "1")
    capsys.readouterr()
    before = tree(fit.folder)
    resume = ["fit", "--config", "runs/digits/version_0/config.yaml", "--ckpt_path", "last"]
    with pytest.raises(SystemExit) as done:
        cli.main(resume)
    assert done.value.code == 0
    said, line = capsys.readouterr().out.splitlines()
    last = "runs/digits/version_0/checkpoints/last.ckpt"
    assert said == f"Nothing is left to do: {last} has reached trainer.{option}=2"
    assert failure(capsys, *resume, f"--trainer.{option}", "1") == (
        f"trainer.{option}=1: the checkpoint has had 2 {option[4:]} already: give more of them"
    )
    assert tree(fit.folder) == before
    cli.main(shlex.split(line)[2:])
    assert torch.load(last, weights_only=True)["global_step"] == 4


# ---- mistakes


FIT = ("fit", "--config", QUICKSTART, "--config", "tiny.yaml", "--config", "quiet.yaml")

MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "function for a class": (
        (*FIT, "--model.optimizer", "timm.optim.create_optimizer_v2"),
        "model.optimizer: create_optimizer_v2 is a function: give a class",
    ),
    "misspelt command": (("fitt",), "'fitt' is no command (did you mean fit?): must be one of fit, "),
    "misspelt command of ours": (("smaple", "--num", "3"), "'smaple' is no command (did you mean sample?)"),
    "unknown option": ((*FIT, "--nonsense", "3"), "unknown option --nonsense"),
    "misspelt option": (
        (*FIT, "--trainer.max_epoch", "3"),
        "unknown option --trainer.max_epoch (did you mean --trainer.max_epochs?)",
    ),
    "misspelt option with =": ((*FIT, "--seed_everythin=3"), "unknown option --seed_everythin=3 (did you mean --seed"),
    "no time": (
        (*FIT, "--trainer.max_time", "00:00:00:00"),
        "trainer.max_time='00:00:00:00': must be some time, as DD:HH:MM:SS, or null for no limit",
    ),
    "misspelt metric": (
        (*FIT, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/lss"),
        "EarlyStopping: monitor='val/lss' is never logged (did you mean val/loss?): must be one of train/loss_epoch, ",
    ),
    "wrong type": (
        (*FIT, "--trainer.max_epochs", "many"),
        'option "trainer.max_epochs": Expected a int. Got value: many',
    ),
    "misspelt class": ((*FIT, "--model.sde", "VPDSE"), "VPDSE (did you mean VPSDE?)"),
    "misspelt class of the package": (
        (*FIT, "--model.network", "diffusion_lightning.UNett"),
        "diffusion_lightning.UNett",
    ),
    "misspelt data": ((*FIT, "--data", "EmbedMNIST"), "EmbedMNIST (did you mean EmbeddedMNIST?)"),
    "class of another kind": ((*FIT, "--model.sampler", "torch.nn.Linear"), "not correspond to a subclass of Sampler"),
    "misspelt nested option": (
        (*FIT, "--model.sde.sigma_mx", "3"),
        "option \"model.sde\": Option 'sigma_mx' is not accepted (did you mean sigma_max?)",
    ),
    "nested wrong type": ((*FIT, "--model.network.channels", "abc"), 'option "channels": Expected'),
    "value out of range": ((*FIT, "--model.ema_decay", "2"), "ema_decay=2.0: must be in [0, 1]"),
    "negative clipping": ((*FIT, "--model.clip_norm", "-1"), "clip_norm=-1.0: must be positive"),
    "no steps": ((*FIT, "--model.sampler.steps", "0"), "steps=0: at least 1 step is needed"),
    "batch of none": ((*FIT, "--data.batch_size", "0"), "batch_size must be at least 1, got 0"),
    "sampler that does not fit": ((*FIT, "--model.sampler.t_min", "100"), "t_min=100.0: must be in"),
    "grid of none": (
        (*FIT, "--trainer.callbacks+", "SampleGrid", "--trainer.callbacks.num_samples", "0"),
        "num_samples=0: must be at least 1",
    ),
    "FID of one": (
        (*FIT, "--trainer.callbacks+", "FIDCallback", "--trainer.callbacks.num_samples", "1"),
        "num_samples=1: must be at least 2",
    ),
    "nothing given": (
        ("fit",),
        "missing: --model.network, --model.sde, --model.parameterization, --data; for instance: lightning fit --config",
    ),
    "nothing to validate": (("validate",), "for instance: lightning validate --config runs/quickstart/version_0/conf"),
    "nothing to evaluate": (("evaluate",), "missing: --ckpt_path; for instance: lightning evaluate --ckpt_path runs/"),
    "nothing to export": (("export",), "missing: --ckpt_path, --format, --output; for instance: lightning export"),
    "nothing to report": (("report",), "missing: runs; for instance: lightning report runs/quickstart"),
    "a config without its option": (("fit", QUICKSTART), "has no option before it: give --config "),
    "a run without its option": (
        ("sample", "my runs"),
        "'my runs' has no option before it: give --ckpt_path 'my runs'",
    ),
    "a name of two words": (
        (*FIT, "--run_name", "my", "run"),
        "'run' follows the value of --run_name: several values are a list, --run_name '[my,run]', and a value with "
        "spaces is quoted, --run_name 'my run'",
    ),
    "a list in words": ((*FIT, "--model.network.channels", "8", "16"), "a list, --model.network.channels '[8,16]'"),
    "a list with commas": (
        (*FIT, "--model.network.channels", "8,16"),
        "option \"channels\": Expected a list, such as '[8,16]'. Got value: 8,16",
    ),
    "a list of one": ((*FIT, "--model.network.channels", "8"), "Expected a list, such as '[8]'. Got value: 8"),
    "a folder that is no run": ((*FIT, "--ckpt_path", "empty"), "ckpt_path='empty': is no run: give a run's folder"),
    "sample of no run": (("sample", "--ckpt_path", "last"), "ckpt_path='last': no run in runs has a checkpoint"),
    "sample at no scale": (("sample", "--ckpt_path", "good.ckpt", "--scale", "0"), "scale=0: must be at least 1"),
    "sample numbers at a scale": (
        ("sample", "--ckpt_path", "good.ckpt", "--scale", "2", "--output", "x.npz"),
        "scale=2: x.npz holds numbers, no pictures",
    ),
    "missing config": (("fit", "--config", "nowhere.yaml"), "File does not exist: "),
    "config that is no YAML": (("fit", "--config", "broken.yaml"), "Problems parsing config"),
    "missing checkpoint": ((*FIT, "--ckpt_path", "no.ckpt"), "ckpt_path='no.ckpt': there is no such file"),
    "last of no run": ((*FIT, "--ckpt_path", "last"), "ckpt_path='last': no run in runs/quickstart has a checkpoints"),
    "truncated checkpoint": ((*FIT, "--ckpt_path", "truncated.ckpt"), "ckpt_path='truncated.ckpt': is damaged"),
    "checkpoint of something else": ((*FIT, "--ckpt_path", "alien.ckpt"), "ckpt_path='alien.ckpt': is a file of some"),
    "validate a missing checkpoint": (
        ("validate", *FIT[1:], "--ckpt_path", "no.ckpt"),
        "ckpt_path='no.ckpt': there is",
    ),
    "folder that cannot be written": (
        (*FIT, "--trainer.default_root_dir", "broken.yaml"),
        "trainer.default_root_dir='broken.yaml': no folder can be made there",
    ),
    "data that cannot be downloaded": (
        (*FIT, "--data", "MNIST", "--data.root", "nowhere/data"),
        "data.root='nowhere/data': MNIST can be neither read from nor downloaded to this folder (no network)",
    ),
    "folder of no pictures": (
        (*FIT, "--data", "ImageFolder", "--data.root", "empty"),
        "data.root='empty' has no pictures",
    ),
    "folder that is not there": (
        (*FIT, "--data", "ImageFolder", "--data.root", "missing"),
        "data.root='missing' is not a folder",
    ),
    "forgotten channels": (
        (*FIT, "--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "32"),
        "model.network.in_channels=1: the examples of ImageFolder, (3, 32, 32), have 3 channels: give "
        "--model.network.in_channels 3; model.network.num_classes=10: ImageFolder has no classes, ",
    ),
    "other classes": (
        (*FIT, "--model.network.num_classes", "2"),
        "model.network.num_classes=2: EmbeddedMNIST has 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), and the network has",
    ),
    "patches that do not fit": (
        (*FIT, "--model.network.patch_size", "3"),
        "model.network.patch_size=3: does not divide the sides of the examples of EmbeddedMNIST, (1, 28, 28), give "
        "--model.network.patch_size 2",
    ),
    "FID without a network": (
        (*FIT, "--trainer.callbacks+", "FIDCallback", "--trainer.callbacks.feature", "inception"),
        "FIDCallback: the Inception weights could not be downloaded (no network): give feature_weights, a local copy "
        "of weights-inception-2015-12-05-6726825d.pth, or, for pictures of digits alone, feature=digits; or leave FID "
        "out: --config configs/overlays/without_fid.yaml",
    ),
    "validate with other classes": (
        ("validate", *FIT[1:], "--model.network.num_classes", "2"),
        "model.network.num_classes=2: EmbeddedMNIST has 10 classes",
    ),
    "sample nothing given": (("sample",), "missing: --ckpt_path; for instance: lightning sample --ckpt_path runs/qu"),
    "sample unknown option": (("sample", "--ckpt_path", "x", "--nm", "3"), "unknown option --nm (did you mean --num?)"),
    "sample missing": (("sample", "--ckpt_path", "no.ckpt"), "ckpt_path='no.ckpt': there is no such file"),
    "sample truncated": (("sample", "--ckpt_path", "truncated.ckpt"), "ckpt_path='truncated.ckpt': is damaged"),
    "sample something else": (
        ("sample", "--ckpt_path", "alien.ckpt"),
        "ckpt_path='alien.ckpt': is a file of something",
    ),
    "sample a picture": (("sample", "--ckpt_path", "picture.png"), "ckpt_path='picture.png': is damaged, or not"),
    "sample what would run code": (
        ("sample", "--ckpt_path", "code.ckpt"),
        "ckpt_path='code.ckpt': holds something other",
    ),
    "sample none": (("sample", "--ckpt_path", "good.ckpt", "--num", "0"), "num=0: at least 1 sample"),
    "sample many": (
        ("sample", "--ckpt_path", "good.ckpt", "--num", "many"),
        'option "num": Expected a int. Got value: many',
    ),
    "sample batches of none": (("sample", "--ckpt_path", "good.ckpt", "--batch_size", "0"), "batch_size=0: must be"),
    "sampler's argument alone": (
        ("sample", "--ckpt_path", "good.ckpt", "--sampler.steps", "5"),
        'option "sampler": name the class of Sampler, too',
    ),
    "sample misspelt": (("sample", "--ckpt_path", "good.ckpt", "--sampler", "Hen"), "Hen (did you mean Heun?)"),
    "sample misspelt nested": (
        ("sample", "--ckpt_path", "good.ckpt", "--sampler", "Heun", "--sampler.step", "3"),
        "Option 'step' is not accepted (did you mean steps?)",
    ),
    "sample no fit": (
        ("sample", "--ckpt_path", "good.ckpt", "--sampler", "Heun", "--sampler.t_min", "100"),
        "t_min=100.0: must be in [0.002, 80)",
    ),
    "sample classes": (
        ("sample", "--ckpt_path", "good.ckpt", "--labels", "[1]"),
        "labels=[1]: the checkpoint's network has",
    ),
    "sample to a film": (
        ("sample", "--ckpt_path", "good.ckpt", "--output", "x.mp4"),
        "output='x.mp4': must end in .png",
    ),
    "sample into a file": (
        ("sample", "--ckpt_path", "good.ckpt", "--output", "tiny.yaml/x.png"),
        "output='tiny.yaml/x.png': no folder can be made there",
    ),
    "sample over a folder": (
        ("sample", "--ckpt_path", "good.ckpt", "--output", "folder.png"),
        "output='folder.png': is a",
    ),
    "sample over pictures": (
        ("sample", "--ckpt_path", "good.ckpt", "--output", "pictures"),
        "output='pictures': this folder already holds pictures",
    ),
    "sample on a strange device": (
        ("sample", "--ckpt_path", "good.ckpt", "--device", "abacus"),
        "device='abacus': cannot be used here",
    ),
}


class Code:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("witness"),)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "quiet.yaml").write_text(QUIET)
    (folder / "broken.yaml").write_text("model: [1\n")
    for name in ("empty", "folder.png", "pictures"):
        (folder / name).mkdir()
    for name in ("picture.png", "pictures/mine.png", "pictures/yours.png"):
        Image.new("L", (4, 4)).save(folder / name)
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, folder / "alien.ckpt")
    torch.save({"code": Code()}, folder / "code.ckpt")
    return folder


@pytest.fixture
def mistaken(wrong, make_module, make_trainer, make_data, monkeypatch) -> Path:
    """This process works there, with a good checkpoint and a half of it, and without a network."""
    if not (wrong / "good.ckpt").exists():
        trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
        trainer.fit(make_module(), datamodule=make_data())
        trainer.save_checkpoint(wrong / "good.ckpt")
        content = (wrong / "good.ckpt").read_bytes()
        (wrong / "truncated.ckpt").write_bytes(content[: len(content) // 2])

    def download(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", download)
    monkeypatch.chdir(wrong)
    return wrong


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_changes_nothing(mistaken, capsys, mistake):
    args, message = MISTAKES[mistake]
    before = tree(mistaken)
    assert message in failure(capsys, *args)
    assert tree(mistaken) == before


def test_mistakes_about_a_finished_run_leave_it_as_it_is(runs, here, capsys):
    config = str(runs.version_0 / "config.yaml")
    resume = ("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", "9")
    before = tree(here)
    line = failure(capsys, *resume, "--model.network.embed_dim", "16")
    assert line == f"ckpt_path={runs.last!r}: the checkpoint is of another network: embed_dim=8 there, 16 here"
    assert "must be in" in failure(capsys, *resume, "--model.sampler.t_min", "100")
    assert "there is no such file; its folder holds epoch=" in failure(
        capsys, *resume[:4], str(Path(runs.last).with_name("lst.ckpt"))
    )
    assert "no pictures" in failure(capsys, *resume, "--data", "ImageFolder", "--data.root", ".git")
    assert tree(here) == before


@pytest.mark.parametrize(
    ("when", "logger"), [("setup", "Wandb"), ("on_fit_start", "TensorBoard"), ("on_train_batch_end", "TensorBoard")]
)
def test_a_start_that_fails_leaves_nothing_behind(mistaken, capsys, monkeypatch, when, logger):
    """Not even a tracker's files, which are there as soon as it is asked for; an earlier run's folder stays."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads the environment once
    earlier = mistaken / "runs" / "quickstart" / "version_0"
    earlier.mkdir(parents=True)
    (earlier / "notes.txt").write_text("mine")
    seen = []

    def fail(self: Any, trainer: Any, *_: Any, **__: Any) -> None:
        folder = Path(trainer.log_dir)
        seen.append(sorted(path.name for path in folder.iterdir()))
        raise ValueError("not here")

    monkeypatch.setattr(Callback, when, fail)
    args = [
        *FIT,
        "--trainer.logger",
        f"diffusion_lightning.{logger}Logger",
        "--trainer.callbacks",
        "lightning.pytorch.Callback",
    ]
    try:
        assert "not here" in failure(capsys, *args)
        assert logger.lower() in seen[0]
        begun = when == "on_train_batch_end"  # a batch that was trained on is a run
        left = ["version_0", "version_1"] if begun else ["version_0"]
        assert sorted(path.name for path in earlier.parent.iterdir()) == left
        assert (earlier / "notes.txt").read_text() == "mine"
    finally:
        shutil.rmtree(mistaken / "runs")
        wandb.run = None  # it has left without a word


def test_samples_that_are_no_pictures_are_written_as_numbers_alone(make_module, make_trainer, tmp_path, capsys):
    network = UNet(in_channels=12, channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False)
    module = make_module(network=network, shape=(12, 4, 4))
    examples = torch.utils.data.TensorDataset(torch.zeros(2, 12, 4, 4), torch.zeros(2))
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, torch.utils.data.DataLoader(examples, batch_size=2))
    trainer.save_checkpoint(tmp_path / "spectra.ckpt")
    sample = ("sample", "--ckpt_path", str(tmp_path / "spectra.ckpt"), "--num", "3", "--quiet", "--output")
    for output in ("s.png", "s"):
        said = failure(capsys, *sample, output)
        assert said.startswith(
            f"output={output!r}: a sample has the shape (12, 4, 4), and pictures have 1 or 3 channels"
        )
        assert said.endswith(": give --output s.npz")
    cli.main([*sample, str(tmp_path / "s.npz")])
    samples = np.load(tmp_path / "s.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((3, 12, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("cannot read the picture a.png: truncated"), "cannot read the picture a.png: truncated"),
        (ValueError("two\n  lines: ValueError: and more"), "two lines: ValueError: and more"),
        (torch.OutOfMemoryError("no memory"), "no memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_of_a_worker_process_is_its_own_line(error, line):
    try:
        try:
            raise KeyError("what led to it")
        except KeyError as cause:
            raise error from cause
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as raised:
        wrapped.reraise()
    assert "Traceback" in str(raised.value)
    assert explain(str(raised.value)) == line


def test_debug_shows_the_traceback(mistaken):
    with pytest.raises(UsageError, match="num=0"):
        cli.main(["sample", "--ckpt_path", "good.ckpt", "--num", "0", "--debug"])
    with pytest.raises(FileNotFoundError):
        cli.main([*FIT, "--ckpt_path", "no.ckpt", "--debug"])


def test_a_mistake_of_ours_keeps_its_traceback(mistaken, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(TrainedModel, "load", lambda *_, **__: {}["gone"])
    line = failure(capsys, "sample", "--ckpt_path", "good.ckpt")
    (log,) = tmp_path.glob("lightning-*.log")
    assert line == f"KeyError: 'gone' (traceback: {log})"
    assert log.read_text().startswith("Traceback")


def test_usage(capsys):
    for args, code in (([], 2), (["--help"], 0), (["-h"], 0)):
        with pytest.raises(SystemExit) as done:
            cli.main(args)
        assert done.value.code == code
        out = capsys.readouterr().out
        assert out.startswith("usage: lightning COMMAND [options]")
        named = {line.split()[0] for line in out.splitlines() if re.match(r"  \w", line)}
        assert named == {"fit", "validate", "test", "predict", *cli.COMMANDS}


def test_another_optimizer_takes_no_setting_from_the_default_one(capsys):
    """AdamW's weight decay of 0.01 would be a strong one for Adam, whose own default is none."""
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", QUICKSTART, "--model.optimizer", "torch.optim.Adam", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]["init_args"]["weight_decay"] == 0


SCREEN = {"lines": 24, "columns": 120}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", *cli.COMMANDS])
def test_help_begins_with_a_screen(capsys, command):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    first, _, details = text.partition("\n\noptions:")  # argparse's own heading of the list of all options
    lines = first.splitlines()
    assert lines[0].startswith(f"usage: lightning {command} ")
    assert len(lines) <= SCREEN["lines"]
    assert max(map(len, lines)) <= SCREEN["columns"]
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.]*", first))
    plain = {option for option in named if not option.startswith(("--model.", "--data", "--CLASS", "--option"))}
    assert {option for option in plain if f"{option} " not in details.replace("\n", " ")} == set()


def test_usage_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN["lines"]
    assert max(map(len, lines)) <= SCREEN["columns"]


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with redirect_stdout(io.StringIO()) as text:
        cli.main(["completion", "bash"])
    path = tmp_path_factory.mktemp("completion") / "script.bash"
    path.write_text(text.getvalue())
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sam"], {"sample"}),
        (["li"], {"likelihood"}),
        (["sample", "--ck"], {"--ckpt_path"}),
        (["fit", "--trainer.max_ep"], {"--trainer.max_epochs"}),
        (["fit", "--dry"], {"--dry_run"}),
    ],
)
def test_bash_completes_commands_and_options(completion, words, expected):
    line = " ".join(f"'{word}'" for word in ["lightning", *words])
    script = (
        f"source {completion}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        f"_shtab_lightning lightning '{words[-1]}' '{['lightning', *words][-2]}'; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_of_every_shell(capsys, shell):
    cli.main(["completion", shell])
    assert "likelihood" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "word"), [([], "shell"), (["fish"], "one of 'bash', 'zsh', 'tcsh'"), (["bash", "x"], "x")]
)
def test_completion_of_no_shell_is_a_line(capsys, args, word):
    assert word in failure(capsys, "completion", *args)


def test_a_dry_run_says_what_a_training_would_be_and_leaves_nothing(runs, here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = ["--config", QUICKSTART, "--config", "tiny.yaml", "--trainer.max_epochs", "3", "--trainer.logger", "null"]
    before = tree(tmp_path)
    cli.main(["fit", *config, "--dry_run"])
    out = capsys.readouterr().out
    assert tree(tmp_path) == before
    assert not (tmp_path / "runs").exists()  # no empty folder either
    resolved, _, table = out.partition("Dry run")
    assert yaml.safe_load(resolved)["model"]["network"]["init_args"]["channels"] == [8]
    lines = {line.split()[0]: line for line in table.splitlines() if line.split()}
    assert "9 batches, 3 an epoch" in lines["length"]
    weights = sum(
        p.numel() for p in ScoreModule.load_from_checkpoint(runs.last).network.parameters() if p.requires_grad
    )
    assert f"UNet, {weights:,} weights" in lines["network"]
    assert "3 × 5 samples of 2 evaluations (DPMSolverPlusPlus)" in lines["SampleGrid"]
    assert "3 × 12 samples of 2 evaluations (DPMSolverPlusPlus)" in lines["FIDCallback"]


def test_a_mistake_through_the_real_command(runs):
    done = runs("diffusion-lightning", "sample", "--ckpt_path", "nowhere.ckpt")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "lightning: error: ckpt_path='nowhere.ckpt': there is no such file\n"
