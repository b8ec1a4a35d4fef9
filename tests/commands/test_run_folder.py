"""Which checkpoint and which run are meant: files, folders of runs and of their names, links, `last`."""

import os
import time

import pytest
import torch

from diffusion_lightning.commands.run_folder import find_checkpoint, recorded_name, run_of
from diffusion_lightning.training.checkpoint_file import KEY


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Makes ``runs/<name>/version_<n>`` with checkpoints of these names, each written a second after the one before."""
    monkeypatch.chdir(tmp_path)
    start = time.time() - 1000
    written = iter(range(1000))

    def make(name, *checkpoints):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(f"run_name: {folder.parent.name}\n")
        for step, checkpoint in enumerate(checkpoints):
            path = folder / "checkpoints" / checkpoint
            torch.save({KEY: {}, "global_step": step}, path)
            os.utime(path, (start + next(written),) * 2)
        return folder

    return make


def test_a_file_is_what_it_is(make_run):
    make_run("q/version_0", "last.ckpt")
    for given in ("runs/q/version_0/checkpoints/last.ckpt", "no.ckpt"):
        assert find_checkpoint(given) == given


@pytest.mark.parametrize(
    "given",
    [
        "runs/q/version_10",
        "runs/q/version_10/",
        "runs/q",
        "runs/q/",
        "./runs/q",
        "runs/q/version_10/checkpoints",
        "link",
    ],
)
def test_a_folder_is_the_newest_checkpoint_of_its_newest_version(make_run, tmp_path, given):
    make_run("q/version_9", "last.ckpt", "epoch=0001.ckpt")
    make_run("q/version_10", "epoch=0001.ckpt", "last.ckpt")
    make_run("q/version_11")  # has just begun
    make_run("p/version_12", "last.ckpt")
    (tmp_path / "link").symlink_to("runs/q/version_10")
    found = tmp_path / find_checkpoint(given)
    assert found.samefile(tmp_path / "runs/q/version_10/checkpoints/last.ckpt")


def test_what_lightning_leaves_in_a_runs_folder_is_not_its_newest(make_run, tmp_path):
    folder = make_run("q/version_0", "last.ckpt")
    (folder / "hpc_ckpt_1.ckpt").write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    assert find_checkpoint(str(folder)) == str(folder / "checkpoints" / "last.ckpt")


def test_last_is_of_the_run_that_was_written_last(make_run):
    make_run("q/version_1", "last.ckpt")
    make_run("p/version_0", "epoch=0000.ckpt", "last.ckpt")
    make_run("a/b/version_0")
    assert find_checkpoint("last") == "runs/p/version_0/checkpoints/last.ckpt"


def test_a_damaged_one_is_passed_over_with_a_warning(make_run):
    folder = make_run("q/version_0", "epoch=0000.ckpt", "previous.ckpt", "last.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-50])
    for given in ("runs/q", "last"):
        with pytest.warns(UserWarning, match=r"last\.ckpt.*is damaged"):
            assert find_checkpoint(given) == "runs/q/version_0/checkpoints/previous.ckpt"
    for name in ("epoch=0000.ckpt", "previous.ckpt"):
        last.with_name(name).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"no checkpoint in .* is intact"),
    ):
        find_checkpoint("runs/q")


def test_what_is_meant_by_nothing(make_run, tmp_path):
    make_run("q/version_0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    for given, error, message in (
        ("runs/q", FileNotFoundError, "ckpt_path='runs/q': runs/q/version_0/checkpoints holds no checkpoint"),
        ("runs", FileNotFoundError, "ckpt_path='runs': holds runs of the names q: give one of these folders"),
        ("empty", FileNotFoundError, "ckpt_path='empty': is no run"),
        ("last", FileNotFoundError, "ckpt_path='last': no run in runs has a checkpoint"),
        ("model", ValueError, "ckpt_path='model': looks like a model of diffusers: .*--model.network DiffusersUNet"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            find_checkpoint(given)


def test_the_run_of_a_checkpoint_however_its_path_is_written(make_run, tmp_path, monkeypatch):
    folder = make_run("q/version_0", "last.ckpt")
    (tmp_path / "best.ckpt").symlink_to(folder / "checkpoints" / "last.ckpt")
    assert str(run_of("runs/q/version_0/checkpoints/last.ckpt")) == "runs/q/version_0"
    for place, written in (
        (tmp_path, str(folder / "checkpoints" / "last.ckpt")),
        (tmp_path, "best.ckpt"),
        (folder / "checkpoints", "last.ckpt"),
        (folder, "checkpoints/last.ckpt"),
        (tmp_path / "runs" / "q" / "version_0" / "checkpoints", "../../version_0/checkpoints/last.ckpt"),
    ):
        monkeypatch.chdir(place)
        assert run_of(written) == folder, written
    monkeypatch.chdir(folder.parent)
    assert str(run_of("version_0/checkpoints/last.ckpt")) == "version_0"
    (folder / "config.yaml").unlink()
    assert run_of(folder / "checkpoints" / "last.ckpt") is None


def test_the_name_that_a_run_has_recorded(make_run, tmp_path):
    assert recorded_name(make_run("q/version_0")) == "q"
    for content in ("[1", "- 1", "run_name: 3", "model: 1"):
        (tmp_path / "config.yaml").write_text(content)
        assert recorded_name(tmp_path) is None
