"""SIGTERM, Ctrl-C and SLURM's signal: a checkpoint of the last step, the way on in one line, and nothing is lost."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hurt_runs import SELDOM, assert_same_run, checkpoint, metrics

from diffusion_lightning.training.checkpoint_file import KEY

ACCUMULATE = "--trainer.accumulate_grad_batches=2"


def last_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("lightning:")]


def test_stopped_twice_and_resumed(make_command, uninterrupted):
    command = make_command(ACCUMULATE)
    # between the two batches of the second step
    said = command(code=130, MISFORTUNES="SIGINT on_train_batch_end 3")
    (line,) = last_lines(said)
    config = Path("runs") / "quickstart" / "version_0" / "config.yaml"
    assert line.startswith("lightning: stopped by SIGINT after step 2 (saved); ")
    assert line.endswith(f"(saved); resume: lightning fit --config {config} --ckpt_path last")
    assert checkpoint(command.run)["global_step"] == 2

    (line,) = last_lines(command.resume(code=143, MISFORTUNES="SIGTERM sample 1"))
    assert line.startswith("lightning: stopped by SIGTERM after step 3 (saved)")
    assert not list(command.run.glob("samples/*.png"))  # it did not wait for the pictures

    _, *arguments = shlex.split(line.split("resume: ")[1])
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", *arguments],
        cwd=command.folder,
        env=command.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(command.run, uninterrupted(ACCUMULATE).run)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_data_workers_do_not_take_a_signal_for_theirs(make_command, name, code):
    command = make_command("--data.num_workers=1")
    (line,) = last_lines(command(code=code, MISFORTUNES=f"group:{name} on_before_optimizer_step 7"))
    assert f"stopped by {name} after step 7 (saved)" in line
    assert checkpoint(command.run)["global_step"] == 7


@pytest.mark.parametrize("save_last", ["true", "false"])
def test_a_checkpoint_callback_of_the_users_own(make_command, save_last):
    own = f"{{class_path: ModelCheckpoint, init_args: {{save_last: {save_last}}}}}"
    command = make_command(f"--trainer.callbacks=[{{class_path: misfortunes.Misfortunes}}, {own}]")
    (line,) = last_lines(command(code=143, MISFORTUNES="SIGTERM on_before_optimizer_step 2"))
    assert "stopped by SIGTERM after step 2 (saved)" in line
    assert checkpoint(command.run)["global_step"] == 2


def test_a_second_ctrl_c_leaves_at_once(make_command):
    command = make_command()
    process = command.start(MISFORTUNES="SIGINT on_before_zero_grad 4; sleep on_before_optimizer_step 4")
    assert process.stderr is not None
    said = ""
    while "Ctrl-C again leaves at once" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)  # the step would take ten minutes
    assert process.returncode == -signal.SIGINT
    assert checkpoint(command.run)["global_step"] == 2


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_before_the_first_step(make_command, name, code):
    make_command()(code=code, MISFORTUNES=f"{name} on_sanity_check_start 1")


def test_two_processes(make_command, uninterrupted):
    command = make_command(processes=2)
    (line,) = last_lines(command(code=143, MISFORTUNES="SIGTERM on_before_optimizer_step 3"))
    # the other process hears of it while it takes the fourth
    assert "stopped by SIGTERM after step 4 (saved)" in line
    # at the pictures of an epoch that is not saved, which each process is about to draw its share of
    said = command.resume(SELDOM, code=130, MISFORTUNES="group:SIGINT sample 2")
    assert len(last_lines(said)) == 1, said
    (line,) = last_lines(said)
    assert "stopped by SIGINT after step 10 (saved)" in line
    assert checkpoint(command.run)[KEY]["position"]["batch"] == 5
    assert [path.name for path in command.run.glob("samples/*.png")] == ["epoch=0000.png"]
    command.resume()
    assert_same_run(command.run, uninterrupted(processes=2).run)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, whose ``scontrol`` writes down what it is told and then ends the job without mercy."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/requeued"\nkill -9 $PPID\n')
    scontrol.chmod(0o755)
    names = {"JOB_ID": "123", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    names |= {"NNODES": "1", "NTASKS_PER_NODE": "1", "JOB_NODELIST": "localhost", "NODELIST": "localhost"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, **{f"SLURM_{name}": value for name, value in names.items()}}


def test_slurm_ends_a_job_before_its_first_checkpoint_and_restarts_it(make_command, uninterrupted, slurm, tmp_path):
    command = make_command(SELDOM, **slurm)
    command(code=-9, MISFORTUNES="SIGUSR1 on_before_optimizer_step 3")
    assert (tmp_path / "requeued").read_text() == "requeue 123\n"
    command(SLURM_RESTART_COUNT="1")
    assert [path.name for path in command.runs.iterdir()] == ["version_0"]
    assert len((command.folder / "record.rank0.jsonl").read_text().splitlines()) == 15  # no batch was done twice
    assert_same_run(command.run, uninterrupted().run)

    command("--trainer.max_steps=1", SLURM_JOB_ID="124")
    assert sorted(path.name for path in command.runs.iterdir()) == ["version_0", "version_1"]
    assert list(metrics(command.runs / "version_1")["train/loss_step"]) == [0]
