"""Every command of docs/scaling.md is one that the real parser takes, and means the processes that the page says."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from diffusion_lightning.commands import cli
from diffusion_lightning.training.recipe import build

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def blocks() -> list[str]:
    """The page's shell code."""
    return [part.split("```")[0] for part in PAGE.split("```sh\n")[1:]]


def commands() -> list[list[str]]:
    """The words of every `fit` command after the program's name."""
    lines = [line for block in blocks() for line in block.replace("\\\n", " ").splitlines() if " fit " in line]
    return [["fit", *shlex.split(line.split(" fit ", 1)[1])] for line in lines]


def resolved(capsys: pytest.CaptureFixture[str], command: list[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as done:
        cli.main([*command, "--print_config"])
    output = capsys.readouterr()
    assert done.value.code in (0, None), output.err
    return yaml.safe_load(output.out)


def test_the_page_has_them_all():
    assert len(commands()) == PAGE.count("lightning fit ") == 8


@pytest.mark.parametrize("command", commands(), ids=range(len(commands())))
def test_a_command_builds_the_trainer_it_speaks_of(capsys, monkeypatch, command):
    monkeypatch.chdir(ROOT)
    config = resolved(capsys, command)
    given = {name: config["trainer"][name] for name in ("devices", "num_nodes", "strategy")}
    given["devices"] = 1 if given["devices"] == "auto" else int(given["devices"])
    trainer = build(Trainer, {**given, "accelerator": "cpu", "logger": False})
    assert trainer.world_size == given["devices"] * given["num_nodes"]
    overlays = [Path(word).stem for word in command if "overlays" in word]
    if "debug" not in overlays and "ddp" in overlays and "timeout" not in str(command):
        assert trainer.world_size * config["data"]["init_args"]["batch_size"] == 512
    name = {"ddp": "DDPStrategy", "fsdp": "ModelParallelStrategy"}.get(overlays[-1], "SingleDeviceStrategy")
    assert type(trainer.strategy).__name__ == name


def test_the_timeout_reaches_the_strategy(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = [command for command in commands() if "0:05:00" in command]
    strategy = build(
        Trainer, {"strategy": resolved(capsys, command)["trainer"]["strategy"], "accelerator": "cpu"}
    ).strategy
    assert strategy._timeout.total_seconds() == 300
