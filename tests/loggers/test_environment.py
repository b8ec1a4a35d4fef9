import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from diffusion_lightning import __version__
from diffusion_lightning.loggers import environment
from diffusion_lightning.loggers.environment import code_version, describe_environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """One commit of one file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_the_commit_and_whether_it_is_what_is_there(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert code_version(repository) == {"commit": commit, "dirty": False}
    (repository / "runs").mkdir()
    (repository / "runs" / "new.txt").write_text("a run made it")
    assert code_version(repository / "runs") == {"commit": commit, "dirty": False}
    (repository / "code.py").write_text("x = 2\n")
    assert code_version(repository) == {"commit": commit, "dirty": True}
    git(repository, "commit", "-q", "-a", "-m", "second")
    assert code_version(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_without_a_commit_or_git_there_is_none(repository, tmp_path, monkeypatch):
    assert code_version(tmp_path) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert code_version(empty) is None
    monkeypatch.setenv("PATH", str(empty))
    assert code_version(repository) is None


def test_git_is_not_waited_for_for_ever(repository, tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "PATIENCE", 0.1)
    assert code_version(repository) is None


def test_all_that_a_run_was_started_in(repository, monkeypatch):
    monkeypatch.chdir(repository)
    command = ["lightning", "fit", "--config", "a file.yaml", "--trainer.logger", "null"]
    found = describe_environment(command, torch.device("cpu"), 3)
    assert list(found) == [
        "started", "command", "directory", "git", "diffusion_lightning", "python", "platform", "devices", "packages",
    ]  # fmt: skip
    assert shlex.split(found["command"]) == command
    assert found["directory"] == str(repository)
    assert found["git"] == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert found["diffusion_lightning"] == __version__
    assert (found["devices"]["type"], found["devices"]["processes"]) == ("cpu", 3)
    assert len(found["devices"]["names"]) == 1
    for name in ("torch", "lightning", "wandb", "numpy"):
        assert found["packages"][name] == version(name)
    assert list(found["packages"]) == sorted(found["packages"], key=str.lower)
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_the_gpus_of_the_machine_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert describe_environment([], torch.device("cuda", 1), 2)["devices"]["names"] == ["GPU 0", "GPU 1"]
