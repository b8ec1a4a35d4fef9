from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger

from diffusion_lightning import FIDCallback, Heun, SampleGrid

RATE = 2.0**-10


class Measures(Callback):
    """A user's own: logs ``mine`` after every n-th epoch."""

    def __init__(self, every_n_epochs: int, value: float = 1.0) -> None:
        self.every_n_epochs, self.value = every_n_epochs, value

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            pl_module.log("mine", self.value)


class Silent(Callback):
    """A user's own, of which nobody can know what it will log."""


def plateau(monitor: str) -> Any:
    """Halves the rate at every value."""
    return partial(ReduceLROnPlateau, monitor=monitor, factor=0.5, patience=0, threshold=1e6)


@pytest.fixture
def train(make_module, make_trainer, make_data) -> Callable[..., Any]:
    """Trains for some epochs of one batch; returns the trainer."""

    def train(*callbacks: Callback, lr_scheduler: Any = None, ckpt_path: Any = None, **settings: Any) -> Any:
        module = make_module(optimizer=partial(torch.optim.SGD, lr=RATE), lr_scheduler=lr_scheduler)
        fixed = {"max_epochs": 6, "limit_train_batches": 1, "limit_val_batches": 1}
        trainer = make_trainer(callbacks=list(callbacks), **{**fixed, **settings})
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
        return trainer

    return train


def rate(trainer: Any) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("monitor", "settings", "values"),
    [
        ("val/loss", {}, 6),
        ("val/loss", {"check_val_every_n_epoch": 2}, 3),
        ("val/loss", {"check_val_every_n_epoch": 4}, 1),
        ("mine", {}, 2),
        ("train/loss_epoch", {"check_val_every_n_epoch": 4}, 6),
    ],
)
def test_a_plateau_waits_for_its_metric_and_uses_each_value_once(train, monitor, settings, values):
    trainer = train(Measures(3), lr_scheduler=plateau(monitor), **settings)
    assert trainer.current_epoch == 6
    assert rate(trainer) == RATE / 2**values


def test_a_value_that_was_used_before_a_resume_is_not_used_again(train, tmp_path):
    common = {"lr_scheduler": plateau("val/loss"), "check_val_every_n_epoch": 2}
    train(max_epochs=2, **common).save_checkpoint(tmp_path / "a.ckpt")
    assert rate(train(max_epochs=6, ckpt_path=tmp_path / "a.ckpt", **common)) == RATE / 8


def test_early_stopping_waits_and_counts_values_not_epochs(train):
    trainer = train(Measures(2), EarlyStopping("mine", patience=2), max_epochs=20)
    assert trainer.current_epoch == 6  # the best one, and two that are no better
    trainer = train(Measures(3), EarlyStopping("mine", patience=1), max_epochs=20, check_val_every_n_epoch=2)
    assert trainer.current_epoch == 8  # it looks after a validation: at 3's value in epoch 4, at 6's in epoch 6 …


def test_a_model_checkpoint_waits_and_keeps_no_epoch_by_the_value_of_another(train, tmp_path):
    saves = ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="mine", save_top_k=3)
    train(Measures(3), saves, enable_checkpointing=True)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["epoch=2.ckpt", "epoch=5.ckpt"]


def test_what_lightning_itself_knows_is_left_to_it(train, tmp_path):
    steps = ModelCheckpoint(tmp_path / "steps", "{step}", monitor="step", mode="max", save_top_k=2)
    every = ModelCheckpoint(tmp_path / "all", "{epoch}", monitor="mine", save_top_k=-1)
    train(Measures(2), steps, every, max_epochs=4, enable_checkpointing=True)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["step=3.ckpt", "step=4.ckpt"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"epoch={n}.ckpt" for n in (1, 2, 3)]


NEVER = {
    "misspelt": (
        lambda: [EarlyStopping("val/lss")],
        {},
        r"EarlyStopping: monitor='val/lss' is never logged \(did you mean val/loss\?\): must be one of "
        r"train/loss_epoch, train/loss_step, train/skipped_steps, val/loss",
    ),
    "checkpoint": (
        lambda: [ModelCheckpoint(monitor="fid/mnist@8"), FIDCallback(num_samples=9, feature="mnist")],
        {"enable_checkpointing": True},
        r"ModelCheckpoint: monitor='fid/mnist@8' is never logged \(did you mean fid/mnist@9\?\)",
    ),
    "name of pictures": (
        lambda: [EarlyStopping("samples"), SampleGrid(Heun(2), num_samples=1)],
        {},
        r"EarlyStopping: monitor='samples' is never logged: must be one of train/loss_epoch, ",
    ),
    "schedule": (
        list,
        {"lr_scheduler": plateau("train/loss_epch")},
        r"model.lr_scheduler: monitor='train/loss_epch' is never logged \(did you mean train/loss_epoch\?\)",
    ),
    "no validation": (
        lambda: [EarlyStopping("val/loss")],
        {"limit_val_batches": 0},
        r"monitor='val/loss' is never logged: there is no validation \(trainer.limit_val_batches",
    ),
}


@pytest.mark.parametrize("case", NEVER)
def test_a_metric_that_never_comes_is_told_at_the_start(train, case):
    callbacks, settings, message = NEVER[case]
    with pytest.raises(ValueError, match=message):
        train(*callbacks(), **settings)


def test_a_metric_that_comes_is_none_of_them(train, tmp_path, recwarn):
    """Those of callbacks, Lightning's too; and our best checkpoint, which nobody asked for, needs no validation."""
    logger = CSVLogger(tmp_path)
    stops = [EarlyStopping(name, patience=9) for name in ("fid/mnist@9", "lr-SGD", "train/loss_step")]
    fid = FIDCallback(num_samples=9, feature="mnist")
    train(*stops, fid, LearningRateMonitor(), max_epochs=1, logger=logger)
    assert not [w for w in recwarn if "monitor=" in str(w.message)]


def test_a_dry_run_without_the_callback_that_measures_is_no_mistake(train):
    assert train(EarlyStopping("fid/mnist@9"), fast_dev_run=2).global_step == 2


def test_what_a_users_own_callback_might_log_is_waited_for_and_told_of_once(train, recwarn):
    stop = EarlyStopping("val/lss")
    trainer = train(stop, Silent(), Measures(2), check_val_every_n_epoch=3)
    assert trainer.current_epoch == 6
    first, second = (str(w.message) for w in recwarn if "monitor=" in str(w.message))
    assert first == (
        "EarlyStopping: monitor='val/lss' is not logged (did you mean val/loss?), unless by Measures, Silent; "
        "it is waited for"
    )
    assert second.startswith(
        "EarlyStopping: monitor='val/lss' has not been logged in 3 epochs; it is waited for, and nothing is done until "
        "then. Logged are "
    )
    assert stop.wait_count == 0
