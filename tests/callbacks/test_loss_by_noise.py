import csv
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diffusion_lightning import (
    VPSDE,
    DenoisingScoreMatching,
    DiscreteVESDE,
    KarrasPreconditioning,
    KarrasSDE,
    LastCheckpoint,
    LogNormalTimes,
    LossByNoise,
    RectifiedFlow,
    RunLogger,
    UniformTimes,
)
from diffusion_lightning.callbacks.loss_by_noise import COLUMNS, draw, noise_levels, table_rows

STD = 0.5
FROZEN = partial(torch.optim.SGD, lr=0.0)


class Nothing(nn.Module):
    """With Karras preconditioning, D = c_skip·x: the exact denoiser of Gaussian data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
        return 0 * self.weight * x


class Gaussians(LightningDataModule):
    """Pictures of 16 × 16 independent normal values of standard deviation 0.5: training, then held-out ones."""

    shape, batch_size = (1, 16, 16), 64

    def __init__(self, num: int = 1920, held_out: int = 640) -> None:
        super().__init__()
        x = STD * torch.randn(num + held_out, *self.shape, generator=torch.Generator().manual_seed(1))
        labels = torch.zeros(len(x), dtype=torch.int64)
        self.parts = TensorDataset(x[:num], labels[:num]), TensorDataset(x[num:], labels[num:])

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=self.batch_size)


class Seen(Callback):
    """Remembers what each epoch's steps handed to callbacks: noise levels and losses."""

    def __init__(self) -> None:
        self.train: dict[int, list[Any]] = {}
        self.val: dict[int, list[Any]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        assert not outputs["losses"].requires_grad
        assert outputs["loss"].item() == pytest.approx(outputs["losses"].mean().item())
        self._remember(self.train, trainer, pl_module, outputs)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._remember(self.val, trainer, pl_module, outputs)

    @staticmethod
    def _remember(where: dict[int, list[Any]], trainer: Any, pl_module: Any, outputs: Any) -> None:
        levels = pl_module.denoiser.sde.noise_level(outputs["times"].double())
        where.setdefault(trainer.current_epoch, []).append((levels, outputs["losses"].double()))


def rows(folder: Path, name: str = "loss_by_noise") -> list[dict[str, Any]]:
    with open(folder / f"{name}.csv", newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: v if k == "stage" else float(v or "nan") for k, v in row.items()} for row in table]


@pytest.fixture
def fit(make_module, make_trainer, make_data, tmp_path):
    """Trains a small module with the given callbacks in the run folder tmp_path/run/version_0."""

    def run(*callbacks: Callback, module: Any = None, data: Any = None, ckpt: Any = None, **settings: Any) -> Any:
        seed_everything(0, verbose=False)
        logger = RunLogger(tmp_path, "run", tmp_path / "run" / "version_0" if ckpt else None)
        trainer = make_trainer(callbacks=list(callbacks), **{"logger": logger, **settings})
        trainer.fit(module or make_module(ema_decay=0.5), datamodule=data or make_data(), ckpt_path=ckpt)
        return trainer

    run.folder = tmp_path / "run" / "version_0"
    return run


# ---- the numbers


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("karras", lambda level: torch.ones_like(level)),
        # α²/σ² times the posterior's variance s²σ²/(α²s² + σ²)
        ("simple", lambda level: STD**2 / (STD**2 + level**2)),
    ],
)
@pytest.mark.parametrize(
    ("sde", "times"),
    [(KarrasSDE(), LogNormalTimes()), (VPSDE(), UniformTimes()), (RectifiedFlow(), UniformTimes(stratified=False))],
)
def test_the_exact_loss_of_gaussian_data_at_every_level(fit, make_module, weighting, expected, sde, times):
    module = make_module(
        network=Nothing(),
        sde=sde,
        parameterization=KarrasPreconditioning(STD),
        objective=DenoisingScoreMatching(weighting, times, reduction="mean", sigma_data=STD),
        optimizer=FROZEN,
    )
    seen = Seen()
    fit(LossByNoise(12), seen, module=module, data=Gaussians(), limit_train_batches=1.0, limit_val_batches=1.0)
    table = rows(fit.folder)
    assert len(table) == 2 * 12
    checked = 0
    for row in table:
        levels = torch.cat([levels for levels, _ in getattr(seen, row["stage"])[0]])
        inside = levels[(row["low"] <= levels) & (levels <= row["high"])]
        assert row["examples"] == pytest.approx(len(inside), abs=1)  # one may lie on a limit
        if len(inside) < 3:
            continue
        exact = expected(inside).mean().item()
        # each loss is exact times a χ² of 256 degrees of freedom over 256
        deviation = math.sqrt(2 / 256 / len(inside))
        assert row["loss"] == pytest.approx(exact, rel=5 * deviation + 0.01 * (len(inside) < 20))
        checked += 1
    assert checked >= 10
    assert sum(row["examples"] for row in table if row["stage"] == "train") == 1920
    assert sum(row["examples"] for row in table if row["stage"] == "val") == 640


def test_each_epochs_rows_are_of_its_own_steps(fit):
    seen, callback = Seen(), LossByNoise(5)
    fit(callback, seen, max_epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=1)
    limits = noise_levels(KarrasSDE(), 5)
    assert limits.tolist() == pytest.approx([0.002 * 40000 ** (i / 5) for i in range(6)])
    found = {(row["epoch"], row["stage"], round(row["low"], 6)): row for row in rows(fit.folder)}
    assert len(found) == 3 * 5 + 5  # the second epoch alone has a validation
    for stage, epochs in (("train", seen.train), ("val", seen.val)):
        for epoch, batches in epochs.items():
            levels, losses = (torch.cat(part) for part in zip(*batches, strict=True))
            for low, high in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
                inside = losses[(levels > low) & (levels <= high)]
                row = found[epoch, stage, round(float(f"{low:.6g}"), 6)]
                assert row["examples"] == len(inside)
                assert row["noise_level"] == pytest.approx(math.sqrt(low * high), rel=1e-5)
                if len(inside):
                    assert row["loss"] == pytest.approx(inside.mean().item(), rel=1e-5)
                else:
                    assert math.isnan(row["loss"])
    assert set(seen.val) == {1}
    assert sorted(path.name for path in (fit.folder / "loss_by_noise").iterdir()) == [
        f"epoch={epoch:04d}.png" for epoch in range(3)
    ]


def test_a_discrete_process_and_a_single_bin(fit, make_module):
    fit(LossByNoise(4), LossByNoise(1, name="one"), module=make_module(sde=DiscreteVESDE()))
    for name, bins in (("loss_by_noise", 4), ("one", 1)):
        table = [row for row in rows(fit.folder, name) if row["stage"] == "train"]
        assert len(table) == bins
        assert sum(row["examples"] for row in table) == 3 * 8
        assert (table[0]["low"], table[-1]["high"]) == pytest.approx((0.01, 1.0))


def test_a_loss_that_is_not_finite_does_not_count():
    callback = LossByNoise(2)
    callback._time_limits = torch.tensor([1.0])
    sums = torch.zeros(2, 2)
    losses = torch.tensor([1.0, math.nan, 3.0, math.inf, 5.0])
    callback._add(sums, {"losses": losses, "times": torch.tensor([0.5, 0.5, 0.7, 2.0, 2.0])})
    assert sums.tolist() == [[4.0, 5.0], [2.0, 1.0]]


def test_training_does_not_notice(fit):
    def weights(*callbacks: Callback) -> list[Tensor]:
        trainer = fit(*callbacks, max_epochs=2)
        return [torch.get_rng_state(), *(p.detach() for p in trainer.lightning_module.parameters())]

    for one, other in zip(weights(LossByNoise()), weights(), strict=True):
        assert torch.equal(one, other)


# ---- the table and the picture


def test_rows_of_empty_bins_have_no_loss():
    sums = {"train": torch.tensor([[3.0, 0.0], [2.0, 0.0]])}
    assert table_rows(7, torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64), sums) == [
        [7, "train", 0.1, 0.01, 1.0, 1.5, 2],
        [7, "train", 10.0, 1.0, 100.0, None, 0],
    ]


def test_the_picture_shows_both_curves_where_there_are_examples():
    limits = noise_levels(KarrasSDE(), 6)
    counts = torch.tensor([0.0, 5.0, 20.0, 30.0, 9.0, 0.0])
    train, val = torch.stack((counts * 2, counts)), torch.stack((counts * 3, counts))
    one, both = (draw(0, limits, sums) for sums in ({"train": train}, {"train": train, "val": val}))
    assert one.shape == both.shape == (3, 450, 700)

    def has(picture: Tensor, *colour: int) -> bool:
        return bool((picture == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0).any())

    blue, orange = (31, 119, 180), (255, 127, 14)  # matplotlib's tab:blue and tab:orange
    assert [has(one, *blue), has(both, *blue)] == [True, True]
    assert [has(one, *orange), has(both, *orange)] == [False, True]


def test_a_loss_of_zero_can_be_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(0, noise_levels(KarrasSDE(), 2), {"train": torch.tensor([[0.0, 1.0], [4.0, 4.0]])})


def test_every_n_epochs_and_after_the_last(fit):
    fit(LossByNoise(2, every_n_epochs=2, name="other"), max_epochs=3, limit_train_batches=1)
    assert sorted({row["epoch"] for row in rows(fit.folder, "other")}) == [1, 2]
    assert sorted(path.name for path in (fit.folder / "other").iterdir()) == ["epoch=0001.png", "epoch=0002.png"]


def test_a_trial_run_leaves_nothing(fit, tmp_path):
    fit(LossByNoise(), fast_dev_run=True)
    assert not [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.csv")]


def test_what_cannot_be_written_is_told_and_training_goes_on(fit):
    (fit.folder / "loss_by_noise.csv").mkdir(parents=True)
    logger = RunLogger(fit.folder.parent.parent, "run", fit.folder)
    with pytest.warns(UserWarning, match=r"loss_by_noise\.csv cannot be written \(.*\): training goes on"):
        trainer = fit(LossByNoise(2), logger=logger)
    assert trainer.global_step == 3
    assert (fit.folder / "loss_by_noise" / "epoch=0000.png").is_file()


# ---- a run that goes on


def test_a_resumed_run_goes_on_with_its_table(fit, make_module):
    fit(LossByNoise(3), LastCheckpoint(), max_epochs=2, enable_checkpointing=True)
    path = fit.folder / "loss_by_noise.csv"
    whole = path.read_text()
    first = whole.splitlines(keepends=True)
    assert len(first) == 1 + 2 * 2 * 3
    # killed in the third epoch, whose rows were not all written
    path.write_text(whole + "2,train,0.1,0.01,1.0,5.0,8\n2,train,1")
    last = fit.folder / "checkpoints" / "last.ckpt"
    fit(LossByNoise(3), LastCheckpoint(), ckpt=last, max_epochs=4, enable_checkpointing=True)
    assert path.read_text().startswith(whole)
    again = rows(fit.folder)
    assert [row["epoch"] for row in again] == [epoch for epoch in range(4) for _ in range(2 * 3)]
    assert not list(fit.folder.glob("*.part"))


def test_resumed_in_the_middle_of_an_epoch_it_is_the_row_of_the_whole(fit):
    settings: dict[str, Any] = {"limit_train_batches": 4, "enable_checkpointing": True}
    fit(LossByNoise(3), LastCheckpoint(every_n_train_steps=1), max_epochs=-1, max_steps=6, **settings)
    cut = [row["examples"] for row in rows(fit.folder) if (row["epoch"], row["stage"]) == (1, "train")]
    assert sum(cut) == 2 * 8
    last = fit.folder / "checkpoints" / "last.ckpt"
    fit(LossByNoise(3), LastCheckpoint(every_n_train_steps=1), ckpt=last, max_epochs=2, **settings)
    resumed = (fit.folder / "loss_by_noise.csv").read_text()
    other = fit.folder.parent / "version_1"
    fit(LossByNoise(3), LastCheckpoint(every_n_train_steps=1), max_epochs=2, **settings)
    assert (other / "loss_by_noise.csv").read_text() == resumed
    assert sum(row["examples"] for row in rows(other) if (row["epoch"], row["stage"]) == (1, "train")) == 4 * 8


def test_a_checkpoint_of_other_bins_or_of_none_is_passed_over():
    callback = LossByNoise(3)
    callback.load_state_dict({"train": [[[1.0, 2.0], [3.0, 4.0]]]})
    assert callback._resumed is None
    callback.load_state_dict({"train": [[[1.0] * 3, [3.0] * 3]]})
    assert callback._resumed is not None
    assert callback.state_key != LossByNoise(3, name="other").state_key


def test_a_table_of_something_else_is_begun_anew(fit):
    fit.folder.mkdir(parents=True)
    (fit.folder / "loss_by_noise.csv").write_text("a,b\n1,2\n")
    fit(LossByNoise(2), logger=RunLogger(fit.folder.parent.parent, "run", fit.folder))
    with open(fit.folder / "loss_by_noise.csv", newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    assert len(rows(fit.folder)) == 4


def test_bad_arguments_are_named():
    for arguments, message in (
        ({"num_bins": 0}, "num_bins=0: must be at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LossByNoise(**arguments)


def test_validation_by_itself_leaves_nothing(make_module, make_trainer, make_data, tmp_path):
    trainer = make_trainer(callbacks=[LossByNoise()])
    trainer.validate(make_module(), datamodule=make_data(), verbose=False)
    assert not list(tmp_path.rglob("loss_by_noise*"))
