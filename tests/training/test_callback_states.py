import itertools
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from diffusion_lightning import LastCheckpoint
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint


@pytest.fixture
def ticking(monkeypatch) -> None:
    """A timer's clock that goes on by ten seconds whenever it looks."""
    ticks = itertools.count(0, 10)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.fixture
def train(make_module, make_trainer, make_data, tmp_path) -> Any:
    """Trains, from ``last.ckpt`` if asked, with one that saves; returns the trainer."""

    def train(*callbacks: Callback, resume: bool = False, **settings: Any) -> Any:
        last = tmp_path / "checkpoints" / "last.ckpt"
        fixed = {"max_epochs": 50, "limit_train_batches": 5, "limit_val_batches": 1, "enable_checkpointing": True}
        saves = LastCheckpoint()
        saves.dirpath = str(last.parent)
        trainer = make_trainer(callbacks=[*callbacks, saves], **{**fixed, **settings})
        trainer.fit(make_module(), datamodule=make_data(), ckpt_path=last if resume else None)
        return trainer

    train.last = tmp_path / "checkpoints" / "last.ckpt"
    return train


def test_each_part_of_a_run_gets_its_time(train, ticking):
    for part in range(3):
        trainer = train(max_time=timedelta(seconds=25), resume=part > 0)
        assert trainer.global_step == 3 * (part + 1)
    epochs = [train(Timer(timedelta(seconds=1), "epoch"), resume=part > 0).current_epoch for part in range(3)]
    assert epochs == [1, 2, 3]


def test_time_ends_a_run_between_two_optimizer_steps(train, ticking, caplog):
    """The gradient of the third batch waits for the fourth: no checkpoint could hold it."""
    trainer = train(max_time=timedelta(seconds=25), accumulate_grad_batches=4)
    assert trainer.global_step == 1
    assert load_checkpoint(train.last)[KEY]["position"]["batch"] == 4
    assert train(max_time=timedelta(seconds=25), accumulate_grad_batches=4, resume=True).global_step == 3


class Falling(EarlyStopping):
    """Sees these values, one after each epoch."""

    def __init__(self, values: list[float], **kwargs: Any) -> None:
        super().__init__("val/loss", **kwargs)
        self.values = values

    def _evaluate_stopping_criteria(self, current: Any) -> Any:
        return super()._evaluate_stopping_criteria(torch.tensor(self.values.pop(0)))


def test_a_run_that_was_stopped_early_goes_on_with_its_patience_anew(train):
    assert train(Falling([1.0] * 9, patience=2)).current_epoch == 3
    assert train(Falling([1.0] * 9, patience=2), resume=True).current_epoch == 5
    assert train(Falling([1.0, 0.5] + [1.0] * 9, patience=2), resume=True).current_epoch == 9


def test_another_patience_is_heard_on_a_resume(train, caplog):
    train(Falling([1.0] * 9, patience=8), max_epochs=3)
    trainer = train(Falling([1.0] * 9, patience=3), resume=True)
    assert trainer.current_epoch == 4  # two values were no better before, this is the third


def test_an_end_that_min_epochs_put_off_stays_asked_for(train):
    """As in a run that was not interrupted, which ends after them even if a value then is the best."""
    values = [1.0, 1.0, 0.5, 0.25, 0.1, 0.05]
    assert train(Falling(list(values), patience=1), min_epochs=5).current_epoch == 5
    train(Falling(list(values), patience=1), min_epochs=5, max_epochs=3)
    assert train(Falling(values[3:], patience=1), min_epochs=5, resume=True).current_epoch == 5


def test_fewer_best_checkpoints_than_before_are_kept_from_now_on(train, tmp_path):
    def best(number: int) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="val/loss", save_top_k=number)

    train(best(3), max_epochs=3)
    fewer = best(1)
    former = {str(tmp_path / "best" / f"epoch={n}.ckpt") for n in range(3)}
    train(fewer, max_epochs=6, resume=True)
    assert len(fewer.best_k_models) == 1
    assert len([path for path in (tmp_path / "best").iterdir() if str(path) not in former]) <= 1


class Remembers(Callback):
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["state"]


@pytest.mark.parametrize("number", [np.float64(0.25), np.float32(0.25), torch.tensor(0.25)])
def test_a_callbacks_numbers_of_other_libraries_do_not_keep_a_checkpoint_from_being_read(train, number):
    train(Remembers([number]), max_epochs=1)
    callback = Remembers([0.0])
    train(callback, max_epochs=2, resume=True)
    assert callback.state == [0.25]


@pytest.mark.parametrize("state", [np.ones(2), {"a": [range(3)]}, Callback()], ids=["array", "range", "object"])
def test_a_state_that_no_checkpoint_can_hold_is_left_out_and_told_of(train, state):
    with pytest.warns(UserWarning, match=r"^Remembers.state_dict\(\): holds a \S+, which checkpoints cannot hold"):
        train(Remembers(state), max_epochs=1)
    callback = Remembers("own")
    assert train(callback, max_epochs=2, resume=True).current_epoch == 2
    assert callback.state == "own"
