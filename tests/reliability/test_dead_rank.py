"""A process of a run that dies, or stands still, ends the run: no process waits for ever, and the message says why."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parent.parent.parent / "configs"
PATIENCE = 240  # seconds until a test that hangs fails; nothing is to be so slow

ENDLESS = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 2,
        "max_epochs": -1,
        "limit_train_batches": 2,
        "limit_val_batches": 0,
        "logger": None,
        "precision": "32-true",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "tell.Tell"}],
    },
    "model": {"network": {"init_args": {"channels": [8], "middle_attention": False, "embed_dim": 8}}},
    "data": {"init_args": {"batch_size": 8}},
}

# found by the command through PYTHONPATH: after the first epoch, each process writes down its number
TELL = """
import os
from pathlib import Path
from lightning.pytorch import Callback


class Tell(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            Path(f"rank{trainer.global_rank}.part").write_text(str(os.getpid()))
            Path(f"rank{trainer.global_rank}.part").replace(f"rank{trainer.global_rank}.pid")
"""

LAUNCHERS = {
    "lightning": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Any:
    """Starts an endless run of two processes and waits until both train."""
    started: list[Any] = []

    def start(launcher: str, timeout: str | None = None) -> Any:
        config = {**ENDLESS, "trainer": dict(ENDLESS["trainer"])}
        if timeout is not None:
            strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": timeout}}
            config["trainer"]["strategy"] = strategy
        (tmp_path / "endless.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "tell.py").write_text(TELL)
        files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / "ddp.yaml", "endless.yaml"]
        options = [part for file in files for part in ("--config", str(file))]
        process = subprocess.Popen(
            [*LAUNCHERS[launcher], "-m", "diffusion_lightning", "fit", *options],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        files = [tmp_path / f"rank{rank}.pid" for rank in range(2)]
        deadline = time.monotonic() + PATIENCE
        while not all(file.is_file() for file in files):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the run does not start"
            time.sleep(0.1)
        return SimpleNamespace(process=process, pids=[int(file.read_text()) for file in files])

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


LOST = "lightning: error: lost contact with another process of this run"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_process_that_dies_ends_the_others(start, launcher, rank):
    run = start(launcher)
    os.kill(run.pids[rank], signal.SIGKILL)
    output, _ = run.process.communicate(timeout=PATIENCE)  # until the last process has closed its output
    assert run.process.returncode != 0
    assert output.count(LOST) == 1
    assert "Traceback" not in output.split(LOST)[0]


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_process_that_stands_still_ends_the_run_after_the_timeout(start, launcher):
    run = start(launcher, timeout="0:00:10")
    os.kill(run.pids[1], signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while run.process.poll() is None and is_alive(run.pids[0]):
        assert time.monotonic() < deadline, "the other one waits for ever"
        time.sleep(0.1)
    os.kill(run.pids[1], signal.SIGKILL)  # torchrun would do so half a minute later
    assert run.process.wait(timeout=PATIENCE) != 0
    assert run.process.communicate(timeout=PATIENCE)[0].count(LOST) == 1
