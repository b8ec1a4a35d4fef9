"""Steps whose loss or gradient is not finite: they change nothing, are counted, and too many end the run."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hurt_runs import Command, checkpoint, metrics
from misfortunes import BrittleUNet, Record

from diffusion_lightning import DenoisingScoreMatching, ScoreModule
from diffusion_lightning.training.checkpoint_file import load_checkpoint
from diffusion_lightning.training.non_finite import NonFiniteError

BRITTLE = (
    "--model.network={class_path: misfortunes.BrittleUNet, init_args: "
    "{channels: [8], num_res_blocks: 1, middle_attention: false, embed_dim: 8, num_classes: 10, patch_size: 4}}"
)
STATE = ("weights", "ema", "optimizer")


def record(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a process wrote down after each batch."""
    return [json.loads(line) for line in (folder / f"record.rank{rank}.jsonl").read_text().splitlines()]


def assert_skipped(lines: list[dict[str, Any]], bad: set[int], accumulate: int = 1) -> None:
    """The steps of the bad batches changed nothing, all others everything, and the bad ones were counted."""
    assert lines[0]["skipped_steps"] == 0, "the first step must be a good one"
    skipped = 0
    for number in range(1, len(lines)):
        before, after = lines[number - 1], lines[number]
        if after["steps"] == before["steps"]:  # the gradient is kept for the next batch
            assert all(before[part] == after[part] for part in STATE)
            continue
        failed = bool(bad & set(range(number - accumulate + 1, number + 1)))
        skipped += failed
        for part in STATE:
            assert (before[part] == after[part]) == failed, (number, part)
        assert after["skipped_steps"] == skipped
        assert after["ema"][0] == after["steps"] - skipped
    assert skipped == len(bad)


FUSED = partial(torch.optim.AdamW, lr=2e-4, fused=True)
"""Leaves a step out by itself; nobody waits to hear which."""


@pytest.mark.parametrize("optimizer", [None, FUSED])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("failure", ["nan", "inf", "gradient"])
def test_a_bad_step_changes_nothing(
    make_module, make_trainer, make_data, tmp_path, monkeypatch, failure, accumulate, optimizer
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAD_CALLS", "2,5,7")
    network = BrittleUNet(failure, channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4)
    trainer = make_trainer(limit_train_batches=10, accumulate_grad_batches=accumulate, callbacks=[Record()])
    trainer.fit(make_module(network=network, optimizer=optimizer), datamodule=make_data())
    assert_skipped(record(tmp_path), {2, 5, 7}, accumulate)
    assert trainer.global_step == 10 // accumulate


class Offset(DenoisingScoreMatching):
    """Adds infinity to the loss of some batches, which leaves its gradient as it is."""

    def __call__(self, denoiser: Any, x0: Any, **kwargs: Any) -> Any:
        loss = super().__call__(denoiser, x0, **kwargs)
        if not denoiser.network.training:
            return loss
        self.calls = getattr(self, "calls", -1) + 1
        return loss + torch.inf if self.calls in (2, 5, 7) else loss


def test_a_bad_loss_with_a_good_gradient_changes_nothing(make_module, make_trainer, make_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(limit_train_batches=10, callbacks=[Record()])
    trainer.fit(make_module(objective=Offset()), datamodule=make_data())
    assert_skipped(record(tmp_path), {2, 5, 7})


def test_bad_examples_change_nothing(make_module, make_trainer, make_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_data()
    normalized = data.on_after_batch_transfer

    def spoilt(batch: Any, dataloader_idx: int) -> Any:
        x, labels = normalized(batch, dataloader_idx)
        if data.trainer.training and data.trainer.fit_loop.batch_idx + 1 in (1, 4):
            x[3, 0, 5, 5] = torch.nan
        return x, labels

    monkeypatch.setattr(data, "on_after_batch_transfer", spoilt)
    trainer = make_trainer(limit_train_batches=6, callbacks=[Record()])
    module = make_module()
    trainer.fit(module, datamodule=data)
    lines = record(tmp_path)
    assert_skipped(lines, {1, 4})
    good = [line["loss"] for line in lines if math.isfinite(line["loss"])]
    assert len(good) == 4
    assert trainer.callback_metrics["train/loss_epoch"] == pytest.approx(sum(good) / 4)
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    assert all(parameter.isfinite().all() for parameter in module.network.parameters())


@pytest.mark.parametrize("optimizer", [None, FUSED])
def test_good_steps_in_between_begin_the_count_anew(
    make_module, make_trainer, make_data, tmp_path, monkeypatch, optimizer
):
    monkeypatch.setenv("BAD_CALLS", "1,2,4,5,7,8")
    network = BrittleUNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4)
    module = make_module(network=network, max_skipped_steps=3, optimizer=optimizer)
    make_trainer(limit_train_batches=9).fit(module, datamodule=make_data())
    assert module.skipped_steps == 6


@pytest.mark.parametrize(("bad", "row"), [("2,3,4,5", 4), ("1,2,3,4", 4), ("6-", 6)])
def test_what_the_device_counts_ends_the_run_when_it_is_read(
    make_module, make_trainer, make_data, tmp_path, monkeypatch, bad, row
):
    """Every fourth step; also where the row was over by then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BAD_CALLS", bad)
    network = BrittleUNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4)
    module = make_module(network=network, max_skipped_steps=4, optimizer=FUSED)
    with pytest.raises(NonFiniteError, match=f"not finite {row} times in a row"):
        make_trainer(limit_train_batches=20).fit(module, datamodule=make_data())
    assert all(parameter.isfinite().all() for parameter in module.network.parameters())


def test_the_device_tells_of_a_skipped_step_once(make_module, make_trainer, make_data, tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("BAD_CALLS", "1,3")
    network = BrittleUNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4)
    module = make_module(network=network, max_skipped_steps=3, optimizer=FUSED)
    make_trainer(limit_train_batches=9).fit(module, datamodule=make_data())
    told = [str(each.message) for each in recwarn if "not finite" in str(each.message)]
    assert told == [
        f"{n} of the last steps before step {step}: the loss or its gradient was not finite; they are skipped"
        for n, step in ((1, 3), (1, 6))
    ]


def test_ten_in_a_row_end_the_run(make_command):
    command: Command = make_command(BRITTLE, BAD_CALLS="4-")
    said = command(code=1)
    (line,) = [line for line in said.splitlines() if line.startswith("lightning: error")]
    assert "10 times in a row" in line
    assert "--ckpt_path last" in line

    lines = record(command.folder)
    assert len(lines) == 13  # the tenth bad batch did not get to its end
    assert_skipped(lines, set(range(4, 13)))
    assert {line["weights"] for line in lines[3:]} == {lines[3]["weights"]}

    found = yaml.safe_load((command.run / "non_finite.rank0.yaml").read_text())
    assert str(command.run.relative_to(command.folder) / "non_finite.rank0.yaml") in line
    assert (found["step"], found["epoch"], found["batch"], found["skipped_in_a_row"]) == (13, 2, 3, 10)
    assert len(found["times"]) == 8
    assert all(math.isfinite(time) and time > 0 for time in found["times"])
    names = set(dict(ScoreModule.load_from_checkpoint(command.last).network.named_parameters()))
    assert found["gradient_norms"].keys() == {name for name in names if "time_features" not in name}
    assert not any(math.isfinite(norm) for norm in found["gradient_norms"].values())

    last = load_checkpoint(command.last)
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())
    assert last["ema"]["num_updates"] == 4
    assert last["diffusion_lightning"]["skipped_steps"] == last["global_step"] - 4
    logged = metrics(command.run)
    good = [line["loss"] for line in lines[:4]]
    assert float(logged["train/loss_epoch"][4][-1]) == pytest.approx(sum(good) / 4, rel=1e-5)
    assert float(logged["train/skipped_steps"][12][-1]) == 9

    command.resume(BAD_CALLS="")  # what made it fail is mended
    after = checkpoint(command.run)
    assert after["global_step"] == 15
    assert after["ema"]["num_updates"] == 15 - last["diffusion_lightning"]["skipped_steps"]


def test_a_run_goes_on_after_a_step_that_the_device_has_left_out(
    make_module, make_trainer, make_data, tmp_path, monkeypatch
):
    def trained(steps: int, bad: str, start: Path | None = None) -> Any:
        monkeypatch.setenv("BAD_CALLS", bad)
        torch.manual_seed(0)
        network = BrittleUNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4)
        trainer = make_trainer(max_epochs=-1, max_steps=steps, limit_train_batches=6, limit_val_batches=0)
        trainer.fit(make_module(network=network, optimizer=FUSED), datamodule=make_data(), ckpt_path=start)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return load_checkpoint(tmp_path / f"{steps}.ckpt")

    whole = trained(6, "2")
    assert trained(4, "2")["diffusion_lightning"]["skipped_steps"] == 1
    resumed = trained(6, "", tmp_path / "4.ckpt")
    assert resumed["ema"]["num_updates"] == whole["ema"]["num_updates"] == 5
    assert resumed["diffusion_lightning"]["skipped_steps"] == whole["diffusion_lightning"]["skipped_steps"] == 1
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value)
    assert all(map(torch.equal, resumed["ema"]["shadow_params"], whole["ema"]["shadow_params"]))


def test_two_processes_skip_what_is_bad_for_one(make_command):
    command: Command = make_command(BRITTLE, "--trainer.max_epochs=1", processes=2, BAD_CALLS="1,3", BAD_RANK="1")
    command()
    first, second = record(command.folder, 0), record(command.folder, 1)
    assert [math.isfinite(line["loss"]) for line in first] == [True] * 5
    assert [math.isfinite(line["loss"]) for line in second] == [True, False, True, False, True]
    for lines in (first, second):
        assert_skipped(lines, {1, 3})
    for part in STATE:
        assert [line[part] for line in first] == [line[part] for line in second]
    logged = metrics(command.run)
    good = [line["loss"] for line in (*first, *second) if math.isfinite(line["loss"])]
    assert float(logged["train/loss_epoch"][4][-1]) == pytest.approx(sum(good) / 8, rel=1e-5)
    assert float(logged["train/skipped_steps"][4][-1]) == 2
