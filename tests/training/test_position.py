"""A run that stops anywhere and goes on from its last checkpoint is the run that did not stop, bit for bit."""

import csv
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau

from diffusion_lightning import (
    GracefulStop,
    LastCheckpoint,
    RunLogger,
    SampleGrid,
    ScoreModule,
    UNet,
    WholeCheckpointIO,
)
from diffusion_lightning.callbacks.graceful_stop import Stopped
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint
from diffusion_lightning.training.position import Position

BATCHES, EPOCHS = 5, 3


class Crash(Exception):
    pass


class CrashAt(Callback):
    """Fails at the n-th call of a hook, before any other callback's."""

    def __init__(self, hook: str, n: int) -> None:
        self.left = n
        setattr(self, hook, self._count)

    def _count(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


VARIANTS: dict[str, dict[str, Any]] = {
    "epochs": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "validation twice an epoch": {"val_check_interval": 2},
    "validation every other epoch": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "until a step": {"max_epochs": -1, "max_steps": 13},
    "bf16": {"precision": "bf16-mixed"},
    "workers": {"num_workers": 2},
    "a learning rate that falls with the loss": {"plateau": "train/loss_epoch"},
    "a learning rate that waits for its metric": {"plateau": "val/loss", "check_val_every_n_epoch": 2},
    "dropout": {"dropout": 0.5, "condition_dropout": 0.5},
    "Lightning's own checkpoints": {"lightning_saves_every": 3},
    "Lightning's own at the end of an epoch": {"lightning_saves_every": BATCHES},
}
# where it crashes: just after a checkpoint and just before one, in an epoch's middle, at its end, and between epochs
PLACES = [
    ("on_train_batch_start", 4),
    ("on_before_zero_grad", 8),
    ("on_train_batch_end", 5),
    ("on_validation_start", 1),
    ("on_train_epoch_end", 2),
    ("on_train_epoch_start", 3),
    ("on_train_end", 1),
]


@pytest.fixture
def run(make_module, make_trainer, make_data, tmp_path):
    """Trains in a folder of that name, from its ``last.ckpt`` if asked."""

    def run(name: str, *callbacks: Callback, resume: bool = False, **settings: Any) -> Path:
        torch.manual_seed(0)
        network = {"channels": (4,), "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False, "patch_size": 4}
        schedule = None
        if monitor := settings.pop("plateau", None):
            schedule = partial(ReduceLROnPlateau, monitor=monitor, factor=0.5, patience=0, threshold=0.5)
        dropped = settings.pop("condition_dropout", 0.0)
        module = make_module(
            network=UNet(**network, dropout=settings.pop("dropout", 0.0), num_classes=10 if dropped else None),
            lr_scheduler=schedule,
            condition_dropout=dropped,
        )
        folder = tmp_path / name / "version_0"
        last = folder / "checkpoints" / "last.ckpt"
        often = {"every_n_train_steps": 2, "every_minutes": 0.0}
        saves: Callback = LastCheckpoint(**settings.pop("last", often))
        if every := settings.pop("lightning_saves_every", None):
            saves = ModelCheckpoint(every_n_train_steps=every, save_last=True, save_top_k=0)
        data = make_data(num_workers=settings.pop("num_workers", 0))
        step = load_checkpoint(last)["global_step"] if resume else 0
        fixed = {"limit_train_batches": BATCHES, "max_epochs": EPOCHS, "limit_val_batches": 1}
        trainer = make_trainer(
            logger=RunLogger(tmp_path, name, resume=folder if folder.exists() else None, resume_step=step),
            callbacks=[GracefulStop(), *callbacks, SampleGrid(num_samples=2), saves],
            plugins=[WholeCheckpointIO()],
            enable_checkpointing=True,
            **{**fixed, **settings},
        )
        trainer.fit(module, datamodule=data, ckpt_path=last if resume else None)
        return folder

    return run


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """All that a nested structure holds, by its path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for n, item in enumerate(value) for k, v in leaves(item, f"{path}/{n}").items()}
    return {path: value}


def state(folder: Path) -> dict[str, Any]:
    """All that is in a run's last checkpoint, but the names of folders and the counters that Lightning starts anew."""
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    del checkpoint["callbacks"], checkpoint["loops"], checkpoint[KEY]["run_ids"]
    return leaves(checkpoint)


def metrics(folder: Path) -> dict[str, dict[str, str]]:
    """The values that are logged for each step."""
    found: dict[str, dict[str, str]] = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["step"], {}).update({k: v for k, v in row.items() if v})
    return found


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_equal(one: Path, other: Path, but: str = "nothing") -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert [path for path in first if not (but in path or same(first[path], second[path]))] == []
    assert metrics(one) == metrics(other)
    pictures = [{p.name: p.read_bytes() for p in (folder / "samples").iterdir()} for folder in (one, other)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_crashed_is_the_run_that_did_not(run, variant, recwarn):
    settings = VARIANTS[variant]
    whole = run("whole", **settings)
    crashed = 0
    # at each place the plain run and every other variant
    number = list(VARIANTS).index(variant)
    places = PLACES[number % 2 :: 2] if number else PLACES
    for hook, n in places:
        try:
            broken = run(f"{hook}", CrashAt(hook, n), **settings)
        except Crash:
            crashed += 1
            broken = whole.parent.parent / hook / "version_0"
            run(hook, resume=(broken / "checkpoints" / "last.ckpt").exists(), **settings)
        # Lightning's saves the end of a run only if it has not saved before
        assert_equal(whole, broken, but=KEY if "lightning_saves_every" in settings else "nothing")
    assert crashed >= len(places) - 1  # without validation none crashes there
    assert not [w for w in recwarn if "resum" in str(w.message)]


def interrupt(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail(*_: Any) -> None:
    raise Crash


class InEpoch(Callback):
    """Has it happen at the end of the second epoch: at a hook, or after the next call of a function."""

    def __init__(
        self, hook: str, function: tuple[Any, str] | None, what: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.function, self.what, self.monkeypatch = function, what, monkeypatch
        setattr(self, hook, self._wait)

    def _wait(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch != 1 or not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if self.function is None:
            return self.what()
        owner, name = self.function
        original = getattr(owner, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            self.monkeypatch.setattr(owner, name, original)
            result = original(*args, **kwargs)
            self.what()
            return result

        self.monkeypatch.setattr(owner, name, function)


# the weights are the averaged ones; they are just becoming so, and nobody would change them back; an error; before it;
# when the step is done and not yet logged
ENDS_OF_AN_EPOCH = [
    ("on_train_epoch_end", (ScoreModule, "sample"), interrupt),
    ("on_train_epoch_end", (torch, "_foreach_copy_"), interrupt),
    ("on_train_epoch_end", (ScoreModule, "sample"), fail),
    ("on_before_zero_grad", None, interrupt),
    ("on_before_zero_grad", (ScoreModule, "on_train_batch_end"), interrupt),
]


def test_what_ends_a_run_at_the_pictures_of_an_epoch_that_is_not_saved_loses_nothing(run, monkeypatch):
    whole = run("whole")
    for number, (hook, function, what) in enumerate(ENDS_OF_AN_EPOCH):
        at = InEpoch(hook, function, what, monkeypatch)
        with pytest.raises(Crash if what is fail else Stopped) as ended:
            run(f"ended_{number}", at, last={})
        assert what is fail or ended.value.saved
        folder = whole.parent.parent / f"ended_{number}" / "version_0"
        paths = [folder / "checkpoints" / f"{which}.ckpt" for which in ("previous", "last")]
        positions = [Position(**load_checkpoint(path)[KEY]["position"]) for path in paths]
        assert [(position.epoch, position.batch) for position in positions] == [(0, BATCHES), (1, BATCHES)]
        assert [path.name for path in (folder / "samples").iterdir()] == ["epoch=0000.png"]
        run(f"ended_{number}", last={}, resume=True)
        assert_equal(whole, folder)


def test_a_longer_run_goes_on_in_the_middle_of_an_epoch(run):
    whole = run("whole", max_epochs=-1, max_steps=12)
    run("shorter", max_epochs=-1, max_steps=7)
    shorter = run("shorter", max_epochs=-1, max_steps=12, resume=True)
    first, second = state(whole), state(shorter)
    compared = [path for path in first if path.startswith(("/state_dict", "/ema", "/optimizer_states"))]
    assert [path for path in compared if not same(first[path], second[path])] == []
    losses = [{step: row.get("train/loss_step") for step, row in metrics(f).items()} for f in (whole, shorter)]
    assert losses[0] == losses[1]
    assert first[f"/{KEY}/position/batch"] == second[f"/{KEY}/position/batch"] == 2


def test_a_finished_run_has_nothing_left_to_do(run):
    folder = run("whole")
    before = state(folder)
    run("whole", resume=True)
    assert state(folder).keys() == before.keys()


ANOTHER_SIZE = {  # from so many steps of 8 examples, of 8 in an epoch, with other examples per step
    "more batches": (
        3,
        4,
        "1 process and 4 examples per step, before it were 1 and 8: .* goes on after batch 6 of 8",
        6,
    ),
    "fewer batches": (3, 12, "1 process and 12 examples .* epoch 0 goes on after batch 2 of 8", 2),
    "none yet": (1, 16, "1 process and 16 examples .* epoch 0 begins", 0),
    "all": (4, 4, "1 process and 4 examples .* of epoch 0 no batch is left, for it has 8, and what follows", 0),
    "more than all": (
        6,
        4,
        "1 process and 4 examples .* of epoch 0 no batch is left, for it has 8, and what follows",
        0,
    ),
}


@pytest.mark.parametrize("case", ANOTHER_SIZE)
def test_another_batch_size_goes_on_at_the_same_example(make_module, make_trainer, make_data, tmp_path, case):
    steps, size, said, first = ANOTHER_SIZE[case]
    fit = {"max_epochs": -1, "limit_train_batches": 8, "limit_val_batches": 0}
    trainer = make_trainer(max_steps=steps, **fit)
    trainer.fit(make_module(), datamodule=make_data(batch_size=8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert Position(**load_checkpoint(tmp_path / "a.ckpt")[KEY]["position"]) == Position(0, steps, steps, 8, 1)

    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((trainer.current_epoch, batch_idx, batch[1].tolist()))

    trainer = make_trainer(callbacks=[Watch()], max_steps=steps + 2, **fit)
    with pytest.warns(UserWarning, match=said):
        trainer.fit(make_module(), datamodule=(data := make_data(batch_size=size)), ckpt_path=tmp_path / "a.ckpt")
    epoch = int("no batch is left" in said)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    order = [labels.tolist() for _, labels in loader][:8]
    assert seen == [(epoch, first, order[first]), (epoch, first + 1, order[first + 1])]


def test_a_finished_run_leaves_nothing_behind_for_the_next_one(make_module, make_trainer, make_data, tmp_path):
    module, data = make_module(), make_data()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    make_trainer(max_epochs=1).fit(module, datamodule=data, ckpt_path=tmp_path / "a.ckpt")
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert (trainer.global_step, trainer.current_epoch) == (6, 2)


def test_a_signal_is_for_one_training_only(make_module, make_trainer, make_data):
    class Interrupt(Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    stop = GracefulStop()
    with pytest.raises(Stopped, match="SIGINT after step 1"):
        make_trainer(callbacks=[stop, Interrupt()]).fit(make_module(), datamodule=make_data())
    trainer = make_trainer(callbacks=[stop])
    trainer.fit(make_module(), datamodule=make_data())
    assert trainer.global_step == 3


def test_weights_alone_are_a_new_beginning(make_module, make_trainer, make_data, tmp_path):
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = type(make_module()).load_from_checkpoint(tmp_path / "a.ckpt")
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=make_data())
    assert (trainer.global_step, trainer.current_epoch) == (3, 1)
