"""A run that is killed and resumed is the run that nothing interrupted: weights, EMA, optimizer, losses, pictures."""

from typing import NamedTuple

import pytest
from hurt_runs import SELDOM, assert_same_run, checkpoint, metrics

SGD = "{class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}"
PLATEAU = (
    "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, "
    "init_args: {monitor: val/loss, patience: 0, threshold: 10.0}}"  # lowers the rate after every epoch but the first
)
USERS_OWN = (
    "[{class_path: misfortunes.Misfortunes}, {class_path: misfortunes.Record}, "
    "{class_path: diffusion_lightning.SampleGrid, init_args: {num_samples: 4}}, "
    "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {every_n_train_steps: 3, save_last: true}}]"
)

LOSSES = "--trainer.callbacks+=diffusion_lightning.LossByNoise"


class Case(NamedTuple):
    options: tuple[str, ...]
    kills: tuple[str, ...]
    processes: int = 1


CASES = {
    "fp32": Case((LOSSES,), ("SIGKILL on_train_batch_end 4", "SIGKILL sample 1", "SIGKILL on_validation_end 2")),
    "bf16, accumulation, workers, SGD": Case(
        (
            "--trainer.precision=bf16-mixed",
            "--trainer.accumulate_grad_batches=2",
            "--data.num_workers=2",
            f"--model.optimizer={SGD}",
        ),
        ("half write 3", "SIGKILL ema 2"),
    ),
    "ModelCheckpoint, validation in between, ReduceLROnPlateau": Case(
        (f"--trainer.callbacks={USERS_OWN}", "--trainer.val_check_interval=2", f"--model.lr_scheduler={PLATEAU}"),
        ("SIGKILL on_validation_batch_end 5", "SIGKILL on_train_epoch_end 1"),
    ),
    "two processes": Case((LOSSES,), ("group:SIGKILL on_train_batch_end 4", "group:SIGKILL sample 2"), processes=2),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed(make_command, uninterrupted, name):
    case = CASES[name]
    command = make_command(*case.options, processes=case.processes)
    said = ""
    for kill in case.kills:
        said += command.resume(code=-9, MISFORTUNES=kill)
        assert command.last.is_file()  # the kill came late enough for the next part to be a resumed one
    said += command.resume()
    assert_same_run(command.run, uninterrupted(*case.options, processes=case.processes).run)
    assert [path.name for path in command.runs.iterdir()] == ["version_0"]
    assert not list(command.folder.rglob("*.part"))
    assert "mid-epoch" not in said
    assert "before the epoch ended" not in said
    assert "resum" not in said


def test_killed_after_epochs_that_were_not_saved(make_command, uninterrupted):
    command = make_command(SELDOM)
    command(code=-9, MISFORTUNES="SIGKILL on_train_batch_end 13")
    assert checkpoint(command.run)["global_step"] == 5  # two epochs are there to be seen, and one to go on from
    assert len(list(command.run.glob("samples/*.png"))) == 2
    command.resume(code=143, MISFORTUNES="SIGTERM sample 2")
    assert checkpoint(command.run)["global_step"] == 10
    command.resume()
    assert_same_run(command.run, uninterrupted().run)


def test_killed_before_anything_was_saved(make_command):
    command = make_command()
    command(code=-9, MISFORTUNES="SIGKILL on_train_batch_end 2")
    assert not command.last.is_file()
    command("--trainer.max_steps=3")
    assert len(metrics(command.run)["train/loss_step"]) == 3
    assert command.run.name == "version_1"


def test_a_longer_run_after_max_steps_in_the_middle_of_an_epoch(make_command, uninterrupted):
    constant = "--model.lr_scheduler=null"  # the recipe's own follows the run's length
    command = make_command(constant)
    command("--trainer.max_steps=8")
    assert checkpoint(command.run)["global_step"] == 8
    command.resume("--trainer.max_steps=15")
    # the mean loss of the part of an epoch that the shorter run ended with
    assert_same_run(command.run, uninterrupted(constant).run, only_here=(("train/loss_epoch", 7),))
