"""Two processes train on what one process with twice the batch trains on, from the start or from a checkpoint on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hurt_runs import Command, metrics

# without dropout, which each process draws for itself, and without Muon, which lifts rounding errors in the gradient's
# smallest directions to the size of the largest
OPTIONS = (
    "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 0.001}}",
    "--model.network.init_args.dropout=0",
    "--data={class_path: misfortunes.FlippedMNIST, init_args: {}}",
    "--model.augment={class_path: diffusion_lightning.GeometricAugmentation, init_args: {probability: 0.5}}",
    "--model.network.init_args.augment_dim=9",
    "--model.condition_dropout=0.3",
)
ONE, TWO = "--data.batch_size=16", "--data.batch_size=8"
LOGGED = ("train/loss_step", "train/loss_epoch", "val/loss", "val/loss_unconditional")


@pytest.fixture(scope="module")
def one(make_command: Any) -> Command:
    command = make_command(*OPTIONS, ONE)
    command()
    return command


def assert_equal_but_for_rounding(command: Command, one: Command) -> None:
    logged, expected = metrics(command.run), metrics(one.run)
    for name in LOGGED:
        values, others = ({s: float(v[-1]) for s, v in found[name].items()} for found in (logged, expected))
        assert len(others) == (15 if name == "train/loss_step" else 3)
        assert values == pytest.approx(others, rel=1e-5)
    final, other = (torch.load(folder / "final.rank0.pt", weights_only=True) for folder in (command.folder, one.folder))
    for part in ("network", "ema"):
        for mine, theirs in zip(final[part], other[part], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def gradient_norms(folder: Path) -> list[float]:
    return [json.loads(line)["gradient_norm"] for line in (folder / "record.rank0.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_twice_the_batch(make_command, one):
    two = make_command(*OPTIONS, TWO, processes=2)
    two()
    assert gradient_norms(two.folder) == pytest.approx(gradient_norms(one.folder), rel=1e-4)
    assert_equal_but_for_rounding(two, one)


def test_a_run_goes_on_with_another_number_of_processes(make_command, one):
    command = make_command(*OPTIONS, TWO, processes=2)
    command(code=-9, MISFORTUNES="group:SIGKILL on_train_batch_end 8")
    # the later option counts
    said = command.resume(ONE, "--trainer.devices=1", "--trainer.strategy=auto")
    assert said.count("the order of the data changes, and epoch 1 goes on after batch 1 of 5") == 1
    assert_equal_but_for_rounding(command, one)
