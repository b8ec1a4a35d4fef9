"""The bars on a real terminal, which this process plays; in log files they are in test_cli.py and test_callbacks.py."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tiny_run import QUICKSTART, TINY


def on_a_terminal(args: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """The exit code of a command, what it showed on a terminal that is its standard error, and its standard output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_lightning", *args],
        cwd=folder,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"},
        stdin=subprocess.DEVNULL,
        stdout=(folder / "out").open("wb"),
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # its other end was closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(timeout=300), shown.decode(errors="replace"), (folder / "out").read_text()


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def test_the_bars_of_a_training_are_shown_together_and_leave_the_results_alone(tmp_path, environment):
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = ["--config", QUICKSTART, "--config", "tiny.yaml", "--trainer.logger", "null", "--trainer.max_epochs", "2"]
    code, shown, out = on_a_terminal(["fit", *config], tmp_path, environment)
    assert code == 0, shown
    for words in (
        r"Epoch 1/1",
        r"images/s: \d+",
        r"left: \d\d:\d\d",
        r"DPMSolverPlusPlus +\d+%",
        r"fid/digits@12 +\d+%",
    ):
        assert re.search(words, plain(shown)), f"{words} not in {plain(shown)[-3000:]}"
    assert "Traceback" not in shown
    assert "Experimental" not in shown
    # one line each is the least that a bar must move up to be drawn again; nothing of it may reach a file
    assert "\x1b" not in out
    assert out.startswith("Summary\n")


def test_a_command_shows_its_bar_on_a_terminal(tmp_path, environment, make_module, make_trainer, make_data):
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    args = ["sample", "--ckpt_path", "x.ckpt", "--num", "4", "--sampler", "Heun", "--sampler.steps", "3"]
    code, shown, out = on_a_terminal(args, tmp_path, environment)
    assert code == 0, shown
    assert re.search(r"Heun +100% .* 3/3 .*step/s", plain(shown)), plain(shown)
    assert out.startswith("4 samples in ")
    code, shown, out = on_a_terminal([*args, "--quiet", "--output", "y.png"], tmp_path, environment)
    assert code == 0
    assert "Heun" not in plain(shown)
