"""The page's SLURM script on a pretended cluster: two tasks, the signal before the end, the requeued job."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import preloaded
import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs"
PATIENCE = 120  # seconds until a test that hangs fails; nothing is to be so slow

TINY = """
trainer:
  accelerator: cpu
  max_epochs: -1
  max_steps: -1
  limit_train_batches: 100
  limit_val_batches: 0
  log_every_n_steps: 1
  logger: null
  precision: 32-true
  enable_progress_bar: false
  callbacks:
    - class_path: tell.Tell
model: {network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}}
"""

# found by the command through PYTHONPATH: each task of each start of the job writes down its number
TELL = """
import os
from pathlib import Path
from lightning.pytorch import Callback


class Tell(Callback):
    def on_train_start(self, trainer, pl_module):
        self.first_step = trainer.global_step
        with open("started_at", "a") as file:
            print(self.first_step, file=file)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first_step + 5:
            name = f"start{os.environ['SLURM_RESTART_COUNT']}.rank{trainer.global_rank}"
            Path(name + ".part").write_text(str(os.getpid()))
            Path(name + ".part").replace(name + ".pid")
"""

SRUN = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import preloaded
numbers = [{{"SLURM_PROCID": n, "SLURM_NODEID": n, "SLURM_LOCALID": "0"}} for n in "01"]
tasks = [preloaded.Popen(sys.argv[1:], env={{**os.environ, **own}}) for own in numbers]
sys.exit(max(abs(task.wait()) for task in tasks))
"""


@pytest.fixture
def submit(tmp_path: Path, environment: dict[str, str]) -> Any:
    """Starts the page's script for the n-th time and waits until both tasks train."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    (script,) = (part.split("```")[0] for part in page.split("```sh\n") if part.startswith("#!/bin/bash"))
    for old, new in (
        ("lightning fit", f"{sys.executable} -m diffusion_lightning fit"),
        ("configs/cifar10_edm.yaml", str(CONFIGS / "quickstart.yaml")),
        ("--config configs/overlays/gpu.yaml", ""),
        ("configs/overlays/ddp.yaml", f"{CONFIGS}/overlays/ddp.yaml --config tiny.yaml"),
        ("--trainer.devices 8", "--trainer.devices 1"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "tell.py").write_text(TELL)
    (tmp_path / "job.sh").write_text(script)
    for name, text in (("srun", SRUN), ("scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.log\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    cluster = {
        **environment,
        "PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")]),
        "PRELOADED": preloaded.server() if subprocess.Popen is preloaded.Popen else "0",
        **{"SLURM_JOB_NAME": "edm", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"},
        **{"SLURM_NNODES": "2", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "localhost"},
    }
    started: list[Any] = []

    def submit(restart: int, job: str = "7") -> Any:
        with open(tmp_path / f"job{restart}.log", "w") as log:
            process = subprocess.Popen(
                ["bash", "job.sh"],
                cwd=tmp_path,
                env={**cluster, "SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_ID": job},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # so that the tasks, which are forked elsewhere, can be of its group
            )
        started.append(process)
        files = [tmp_path / f"start{restart}.rank{rank}.pid" for rank in range(2)]
        wait_until(lambda: all(file.is_file() for file in files), process, log.name)
        return SimpleNamespace(process=process, log=log.name, pids=[int(file.read_text()) for file in files])

    yield submit
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Any, process: Any, log: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, Path(log).read_text()
        assert time.monotonic() < deadline, Path(log).read_text()
        time.sleep(0.1)


def test_a_requeued_job_goes_on_in_its_run(submit, tmp_path):
    first = submit(0)
    for pid in first.pids:
        os.kill(pid, signal.SIGUSR1)  # as SLURM signals each task
    wait_until((tmp_path / "scontrol.log").is_file, first.process, first.log)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    os.killpg(first.process.pid, signal.SIGKILL)  # as SLURM ends the tasks of a job that it requeues
    second = submit(1)
    os.killpg(second.process.pid, signal.SIGKILL)
    starts = [int(step) for step in (tmp_path / "started_at").read_text().split()]
    assert starts[:2] == [0, 0]
    assert starts[2] == starts[3] >= 5  # where the signal found it, not the end of the epoch before
    runs = tmp_path / "runs" / "quickstart"
    assert [path.name for path in runs.iterdir()] == ["version_0"]
    assert (runs / "version_0" / "hpc_ckpt_1.ckpt").is_file()
    with open(runs / "version_0" / "metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss_step"]]
    assert steps == list(range(len(steps)))
    assert len(steps) >= starts[2] + 4


def test_another_job_is_another_run(submit, tmp_path):
    first = submit(0)
    os.killpg(first.process.pid, signal.SIGKILL)
    for file in tmp_path.glob("start*.pid"):
        file.unlink()
    second = submit(0, job="8")
    os.killpg(second.process.pid, signal.SIGKILL)
    assert {path.name for path in (tmp_path / "runs" / "quickstart").iterdir()} == {"version_0", "version_1"}
    starts = [int(step) for step in (tmp_path / "started_at").read_text().split()]
    assert starts == [0, 0, 0, 0]
