"""How often the last checkpoint is saved, by a clock that only the steps and the pictures move."""

import csv
import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy

from diffusion_lightning import LastCheckpoint, RunLogger, SampleGrid, WholeCheckpointIO
from diffusion_lightning.callbacks import checkpoints
from diffusion_lightning.training.checkpoint_file import KEY, LOGGED


class Watch(WholeCheckpointIO):
    """Writes down where the run stands in what is written: complete epochs, and batches of the next one."""

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.fails, self.saved, self.logged = fails, [], []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        position = checkpoint[KEY]["position"]
        self.saved.append((position["epoch"], position["batch"]))
        self.logged.append(checkpoint.get(LOGGED))
        if len(self.saved) in self.fails:
            path = "/dev/null/nowhere"
        super().save_checkpoint(checkpoint, path)


class Slow(Callback):
    """An epoch, which is one step, takes 100 s."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def on_before_zero_grad(self, *_: Any) -> None:
        self.clock.now += 100


class SlowGrid(SampleGrid):
    def __init__(self, clock: Any, seconds: float) -> None:
        super().__init__(num_samples=1)
        self.clock, self.seconds = clock, seconds

    def on_train_epoch_end(self, *args: Any) -> None:
        super().on_train_epoch_end(*args)
        self.clock.now += self.seconds


@pytest.fixture
def saved(make_module, make_trainer, make_data, tmp_path, monkeypatch) -> Any:
    """Trains with a LastCheckpoint of these arguments; where the run stood in each checkpoint.

    Its ``watch`` is that of the last training, its ``rows()`` are those of the run's ``metrics.csv``.
    """
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def saved(
        pictures: float | None = None,
        fails: tuple[int, ...] = (),
        resume: bool = False,
        max_epochs: int = 8,
        **last: Any,
    ) -> list[tuple[int, int]]:
        saved.watch = watch = Watch(fails)
        folder = tmp_path / "run" / "version_0"
        grid = [SlowGrid(clock, pictures)] if pictures is not None else []
        trainer = make_trainer(
            logger=RunLogger(tmp_path, "run", resume=folder if resume else None),
            callbacks=[Slow(clock), *grid, LastCheckpoint(**last)],
            plugins=[watch],
            enable_checkpointing=True,
            max_epochs=max_epochs,
            limit_train_batches=1,
            limit_val_batches=0,
        )
        resumed = folder / "checkpoints" / "last.ckpt" if resume else None
        trainer.fit(make_module(), datamodule=make_data(), ckpt_path=resumed)
        return watch.saved

    def rows() -> list[dict[str, str]]:
        with open(tmp_path / "run" / "version_0" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    saved.rows = rows
    return saved


def interval(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, [1, 4, 7, 8]),
        ({"every_minutes": 0}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every_minutes": 200 / 60}, [1, 3, 5, 7, 8]),
        ({"every_minutes": 1e300}, [1, 8]),
        # what is asked for in steps or time is obeyed, and of time no more than that
        ({"every_minutes": 1e6, "every_n_train_steps": 3}, [1, 3, 6, 8]),
        ({"every_n_train_steps": 2}, [1, 2, 4, 6, 8]),
        ({"train_time_interval": interval(150)}, [1, 3, 5, 7, 8]),
        ({"train_time_interval": interval(1000)}, [1, 8]),
        ({"train_time_interval": interval(1000), "every_minutes": 0}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_which_epochs_are_saved(saved, settings, epochs):
    assert saved(**settings) == [(epoch, 0) for epoch in epochs]


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({}, [(0, 1), (3, 1), (4, 0)]),
        ({"every_n_train_steps": 2}, [(0, 1), (1, 1), (3, 1), (4, 0)]),
        ({"pictures": 400}, [(0, 1), (1, 0), (2, 0), (3, 0), (4, 0)]),  # they take longer than it is to wait
        ({"every_minutes": 0}, [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0)]),
    ],
)
def test_before_an_epochs_pictures_and_not_again_after_them(saved, settings, positions):
    assert saved(max_epochs=4, **{"pictures": 0, **settings}) == positions


def test_before_an_epochs_pictures_it_says_what_the_step_has_logged(saved):
    """Its loss, and not yet what follows it; what is complete has nothing to say."""
    assert saved(max_epochs=2, pictures=0, every_minutes=0) == [(0, 1), (1, 0), (1, 1), (2, 0)]
    first, complete, second, end = saved.watch.logged
    rows = saved.rows()
    assert complete is end is None
    for logged, row in zip((first, second), rows, strict=True):
        assert logged.keys() == {"train/loss_step", "train/skipped_steps", "epoch"}
        assert row.keys() > logged.keys() | {"train/loss_epoch"}
        assert logged == {name: float(row[name]) for name in logged}


@pytest.mark.parametrize("minutes", [1, 1e6])
def test_whatever_its_own_clock_says_a_process_saves_when_the_first_one_does(saved, monkeypatch, minutes):
    """As the process that a broadcast tells what the first one has seen of its clock; test_ddp.py has two of them."""
    seen = [False, True, False, False, True, True, False]
    monkeypatch.setattr(checkpoints, "_has_failed", lambda trainer: False)
    monkeypatch.setattr(
        SingleDeviceStrategy, "broadcast", lambda self, own, src=0: seen.pop(0) if isinstance(own, bool) else own
    )
    assert saved(every_minutes=minutes) == [(1, 0), (3, 0), (6, 0), (7, 0), (8, 0)]


def test_what_could_not_be_saved_is_saved_after_the_next_epoch(saved):
    with pytest.warns(UserWarning, match="could not be written"):
        assert saved(fails=(1, 3)) == [(1, 0), (2, 0), (5, 0), (6, 0), (8, 0)]


def test_each_start_saves_its_first_epoch(saved):
    assert saved(max_epochs=2) == [(1, 0), (2, 0)]
    assert saved(max_epochs=5, resume=True) == [(3, 0), (5, 0)]


def test_nothing_is_kept_of_a_trial_run(make_module, make_trainer, make_data, tmp_path):
    last = LastCheckpoint()
    callbacks = [SampleGrid(num_samples=1), last]
    trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True, fast_dev_run=2)
    trainer.fit(make_module(), datamodule=make_data())
    assert not last.loses_nothing(trainer)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("minutes", [-1.0, math.nan, math.inf])
def test_minutes_that_are_none(minutes):
    with pytest.raises(ValueError, match=f"^every_minutes={minutes}: must be finite and at least 0, .* every epoch$"):
        LastCheckpoint(every_minutes=minutes)


def test_what_is_kept_in_memory_is_of_its_moment(make_module, make_trainer, make_data):
    """Whatever becomes of weights, buffers and callbacks' states afterwards."""

    class Counts(Callback):
        state: dict[str, Any]

        def __init__(self) -> None:
            self.state = {"seen": torch.zeros(1), "epochs": [0]}

        def state_dict(self) -> dict[str, Any]:
            return self.state

    counts, module = Counts(), make_module()
    trainer = make_trainer(callbacks=[counts])
    trainer.fit(module, datamodule=make_data())
    kept = checkpoints._in_memory(trainer)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for value in module.state_dict().values():
            value.zero_()
    counts.state["seen"] += 1
    counts.state["epochs"].append(1)
    assert kept["state_dict"].keys() == before.keys()
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in before.items())
    assert kept["callbacks"][counts.state_key] == {"seen": torch.zeros(1), "epochs": [0]}
    assert kept["ema"]["num_updates"] == 3
    assert len(kept["optimizer_states"]) == 1
