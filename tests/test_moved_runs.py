"""Runs that were moved, copied, renamed or are named from elsewhere; paths that are typed, and that are told."""

import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import Namespace
from PIL import Image
from tiny_run import QUICKSTART, QUIET, TINY, failure, tree

from diffusion_lightning import WandbLogger, cli
from diffusion_lightning.commands import resumption


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A folder with the run ``digits/version_0``, which was made in ``runs``; no later epoch will be better."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "digits.yaml").write_text(Path(QUICKSTART).read_text())
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "quiet.yaml").write_text(QUIET)
    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", *(part for name in ("digits", "tiny", "quiet") for part in ("--config", f"{name}.yaml"))])
        last = Path("runs/digits/version_0/checkpoints/last.ckpt")
        checkpoint = torch.load(last, weights_only=True)
        (state,) = (s for name, s in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
        assert state["best_k_models"].keys() == {"runs/digits/version_0/checkpoints/epoch=0000.ckpt"}
        for name in ("best_model_score", "kth_value"):
            state[name] = torch.tensor(-1.0)
        state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(-1.0))
        torch.save(checkpoint, last)
        shutil.move("runs/digits", "elsewhere/digits")
        Path("runs").rmdir()
    return folder / "elsewhere"


MOVES = {
    "copied": ("place/myrun", "", ("--config", "place/myrun/config.yaml", "--ckpt_path", "last")),
    "within": ("place/myrun", "place/myrun", ("--config", "config.yaml", "--ckpt_path", "last")),
    "from its checkpoints": (
        "place/myrun",
        "place/myrun/checkpoints",
        ("--config", "../config.yaml", "--ckpt_path", "last.ckpt"),
    ),
    "from beside": ("place/myrun", "place/x", ("--config", "../myrun/config.yaml", "--ckpt_path", "last")),
    "config outside": (
        "place/myrun",
        "",
        (
            "--config",
            "digits.yaml",
            "--config",
            "tiny.yaml",
            "--config",
            "quiet.yaml",
            "--ckpt_path",
            "./place//myrun/",
        ),
    ),
    "renamed": (
        "runs/mine/version_3",
        "",
        (
            "--config",
            "digits.yaml",
            "--config",
            "tiny.yaml",
            "--config",
            "quiet.yaml",
            "--run_name",
            "mine",
            "--ckpt_path",
            "last",
        ),
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_run_goes_on_where_it_is_now(old_run, tmp_path, monkeypatch, capsys, caplog, recwarn, move):
    folder, here, args = MOVES[move]
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(old_run / "digits" / "version_0", tmp_path / folder)
    (tmp_path / "place" / "x").mkdir(parents=True, exist_ok=True)
    for name in ("digits", "tiny", "quiet"):
        shutil.copy(old_run.parent / f"{name}.yaml", tmp_path)
    outside = {path for path in tmp_path.rglob("*") if tmp_path / folder not in path.parents}
    monkeypatch.chdir(tmp_path / here)
    cli.main(["fit", *args, "--trainer.max_epochs", "2"])
    assert "goes on in " in caplog.text
    assert "from step 3, last.ckpt" in caplog.text
    assert "Done after 6 steps" in capsys.readouterr().out
    assert torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    # the best of before is still it, and there is no worse one beside it
    assert [path.name for path in (tmp_path / folder / "checkpoints").glob("epoch=*")] == ["epoch=0000.ckpt"]
    assert {path for path in tmp_path.rglob("*") if tmp_path / folder not in path.parents} == outside
    assert not any("dirpath has changed" in str(warning.message) for warning in recwarn)


def test_a_better_one_replaces_the_best_of_before_the_move(old_run, tmp_path, monkeypatch):
    shutil.copytree(old_run / "digits" / "version_0", tmp_path / "myrun")
    monkeypatch.chdir(tmp_path)
    last = Path("myrun/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (s for name, s in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1e9))
    torch.save(checkpoint, last)
    cli.main(["fit", "--config", "myrun/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert [path.name for path in Path("myrun/checkpoints").glob("epoch=*")] == ["epoch=0001.ckpt"]


def test_a_best_checkpoint_that_was_left_behind_is_not_waited_for(old_run, tmp_path, monkeypatch):
    shutil.copytree(old_run / "digits" / "version_0", tmp_path / "runs" / "digits" / "version_0")
    monkeypatch.chdir(tmp_path)
    checkpoints = Path("runs/digits/version_0/checkpoints")
    (checkpoints / "epoch=0000.ckpt").unlink()
    config = "runs/digits/version_0/config.yaml"
    cli.main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert [path.name for path in checkpoints.glob("epoch=*")] == ["epoch=0001.ckpt"]


def test_where_a_moved_run_cannot_go_on_is_said_first(old_run, tmp_path, monkeypatch, capsys, caplog):
    shutil.copytree(old_run / "digits" / "version_0", tmp_path / "place" / "myrun")
    monkeypatch.chdir(tmp_path)
    resume = ("fit", "--config", "place/myrun/config.yaml", "--ckpt_path")
    before = tree(tmp_path)

    def full(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", full)
        line = failure(capsys, *resume, "last", "--trainer.max_epochs", "2")
    assert "its run's folder cannot be written (Read-only file system): give --run_name" in line
    assert tree(tmp_path) == before

    shutil.copy("place/myrun/checkpoints/last.ckpt", "alone.ckpt")
    more = ("--trainer.max_epochs", "2", "--trainer.limit_val_batches", "0")
    cli.main([*resume, "alone.ckpt", *more])
    assert "starts a new run, digits, from step 3 of alone.ckpt, which lies in no run's folder" in caplog.text
    cli.main([*resume, "last", "--run_name", "other", *more])
    told = "starts a new run, other, from step 3 of another one's place/myrun/checkpoints/last.ckpt"
    assert told in caplog.text
    assert sorted(path.as_posix() for path in Path("runs").glob("*/*")) == [
        "runs/digits/version_0",
        "runs/other/version_0",
    ]
    assert {path: tree(tmp_path)[path] for path in before} == before

    shutil.rmtree("place/myrun/checkpoints")
    cli.main([*resume, "last", "--trainer.max_epochs", "3", "--trainer.limit_val_batches", "0"])
    told = "goes on in runs/digits/version_0 from step 6, last.ckpt; not in place/myrun, the config's folder"
    assert told in caplog.text


def test_what_is_drawn_of_a_moved_run_lies_in_its_folder(old_run, tmp_path, monkeypatch):
    shutil.copytree(old_run / "digits" / "version_0", tmp_path / "place" / "my run")
    monkeypatch.chdir(tmp_path)
    predict = ["predict", "--config", "place/my run/config.yaml", "--data.num_predict", "2", "--ckpt_path"]
    for given in ("last", "place/my run", "place/my run/checkpoints/last.ckpt"):
        cli.main([*predict, given])
        assert len(list(Path("place/my run/predictions").iterdir())) == 2
        shutil.rmtree("place/my run/predictions")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_the_commands_that_are_told_can_be_typed(old_run, tmp_path, monkeypatch, capsys):
    """A path with spaces and a quote, in every one of them."""
    monkeypatch.chdir(tmp_path)
    run = "runs/it's my run/version_0"
    shutil.copytree(old_run / "digits" / "version_0", run)
    resume = ["fit", "--config", f"{run}/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    cli.main([*resume, "--trainer.limit_val_batches", "0"])
    out = capsys.readouterr().out
    told = dict(line.split(maxsplit=1) for line in out[out.index("Done after") :].splitlines()[1:])
    assert shlex.split(told["report"]) == ["lightning", "report", run]
    assert shlex.split(told["sample"])[3] == f"{run}/checkpoints/last.ckpt"
    assert shlex.split(told["resume"])[:6] == ["lightning", *resume[:5]]
    monkeypatch.setattr(WandbLogger, "experiment", SimpleNamespace(offline=True, dir=f"{run}/wandb/offline-run/files"))
    assert shlex.split(WandbLogger().how_to_look())[:3] == ["wandb", "sync", f"{run}/wandb/offline-run"]


def test_every_command_takes_a_run_and_last(old_run, tmp_path, monkeypatch, capsys, caplog):
    shutil.copytree(old_run / "digits", tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    solver = ["--data", "EmbeddedMNIST", "--num", "2", "--rtol", "0.1", "--atol", "0.1"]
    for command, given, *options in (
        ("sample", "runs/digits", "--num", "1", "--scale", "3"),
        ("sample", "last", "--num", "1", "--scale", "3"),
        ("likelihood", "runs/digits/version_0", *solver),
        ("evaluate", "last", "--num", "8", "--metrics", "is", "--neighbours", "0"),
        ("export", "last", "--format", "safetensors", "--output", "exported"),
    ):
        caplog.clear()
        cli.main([command, "--ckpt_path", given, *options])
        assert "checkpoint: runs/digits/version_0/checkpoints/last.ckpt, step 3" in caplog.text
    assert len(list(Path("runs/digits/version_0/evaluations").iterdir())) == 1
    with Image.open("samples.png") as picture:
        assert picture.size == (84, 84)
    cli.main(["validate", "--config", "runs/digits/version_0/config.yaml", "--ckpt_path", "runs/digits"])
    assert "val/loss" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_pictures_of_any_kind_enlarged(old_run, tmp_path, suffix):
    common = ["sample", "--ckpt_path", str(old_run / "digits"), "--num", "2", "--quiet", "--device", "cpu"]
    cli.main([*common, "--output", str(tmp_path / "small.png")])
    cli.main([*common, "--output", str(tmp_path / f"x{suffix}"), "--scale", "4"])
    with Image.open(tmp_path / "small.png") as small, Image.open(tmp_path / f"x{suffix}") as large:
        assert large.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
        expected = np.asarray(small).repeat(4, 0).repeat(4, 1)
        found = np.asarray(large.convert("RGB"))
    if large.format == "JPEG":
        assert found.shape == expected.shape
        assert np.abs(found.astype(float) - expected).mean() < 5
    else:
        assert np.array_equal(found, expected)


def test_environment_variables_are_no_options(monkeypatch, capsys):
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "7")
    with pytest.warns(UserWarning, match="PL_FIT__TRAINER__MAX_EPOCHS: environment variables are no options here"):
        failure(capsys, "fit", "--config", QUICKSTART, "--run_name", "..")


@pytest.mark.parametrize("ckpt_path", [None, "last", "place/myrun", "place/myrun/checkpoints/epoch=0000.ckpt"])
def test_a_job_that_slurm_has_restarted_goes_on_in_its_moved_run(tmp_path, monkeypatch, ckpt_path):
    """Not from the checkpoint that it was first started from, and not in a run that another job or name has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resumption, "slurm_job", lambda: "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = Path("place/myrun")
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("run_name: digits\n")
    (run / "slurm_job").write_text("7")
    for name in ("last", "epoch=0000"):
        (run / "checkpoints" / f"{name}.ckpt").touch()
    config = Namespace(
        ckpt_path=ckpt_path,
        run_name="digits",
        trainer=Namespace(default_root_dir="runs"),
    )
    requeued = partial(resumption.requeued_run, files=[run / "config.yaml"])
    assert requeued(config) == run / "config.yaml"
    config.run_name = "other"
    assert requeued(config) is None
    config.run_name = "digits"
    (run / "slurm_job").write_text("8")
    assert requeued(config) is None
