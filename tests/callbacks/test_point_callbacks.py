import csv
import math
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diffusion_lightning import (
    MLP,
    VESDE,
    VPSDE,
    EulerMaruyama,
    GaussianMixtureDenoiser,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    NoisePrediction,
    Points,
    RunLogger,
    SampleWriter,
    ScoreModule,
    SubVPSDE,
    cli,
)
from diffusion_lightning.callbacks import SlicedWasserstein, VectorField, vector_field
from diffusion_lightning.callbacks.vector_field import (
    ARROWS,
    draw,
    grid_points,
    limits,
    path_in_view,
    score_field,
    time_near,
)
from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein
from diffusion_lightning.randomness import Stream, derive_seed, draw_some

FROZEN = partial(torch.optim.SGD, lr=0.0)
LABEL = "sliced_wasserstein@30"


class Line(nn.Module):
    """A network for points: one hidden layer of eight."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.seen: list[tuple[bool, Tensor | None]] = []
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append((self.training, labels))
        return self.layers(torch.cat([x, time_signal[:, None].to(x)], 1))


class Cloud(LightningDataModule):
    """Normal points: 32 to train on, 40 held out, labels 0 and 1 in turn."""

    shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        points = torch.randn(72, 2, generator=torch.Generator().manual_seed(1))
        self.training, self.held_out = points[:32], points[32:]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.training, torch.arange(32) % 2), batch_size=16)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.held_out, torch.arange(40) % 2), batch_size=40)

    test_dataloader = val_dataloader


class Unnoticed:
    """Checks, wrapped around a callback's hook, that it leaves generators, weights and the training mode alone."""

    def __init__(self, callback: Any) -> None:
        self.checked = 0
        original = callback.on_train_epoch_end

        def watched(trainer: Any, module: Any) -> None:
            def state() -> list[Tensor]:
                return [torch.get_rng_state(), *(p.detach().clone() for p in module.parameters())]

            before, python = state(), random.getstate()
            original(trainer, module)
            assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
            assert random.getstate() == python
            assert module.training
            self.checked += 1

        callback.on_train_epoch_end = watched


def make_points_module(num_classes: int | None = None, **kwargs: Any) -> ScoreModule:
    torch.manual_seed(0)
    parts = {"sampler": Heun(steps=4), "ema_decay": 0.5, "optimizer": partial(torch.optim.Adam, lr=0.01), **kwargs}
    return ScoreModule(Line(num_classes), KarrasSDE(), KarrasPreconditioning(), **parts)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fit(make_trainer, tmp_path):
    """Trains a small module on the cloud with the given callbacks in the run folder tmp_path/run/version_0."""

    def run(*callbacks: Callback, module: Any = None, data: Any = None, **settings: Any) -> Any:
        seed_everything(0, verbose=False)
        trainer = make_trainer(callbacks=list(callbacks), **{"logger": RunLogger(tmp_path, "run"), **settings})
        trainer.fit(module or make_points_module(), datamodule=data or Cloud())
        return trainer

    run.folder = tmp_path / "run" / "version_0"
    return run


# ---- the field


@pytest.mark.parametrize("sde", [KarrasSDE(), VPSDE(), SubVPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("noise_level", [0.05, 1.0])
def test_arrows_are_the_score_of_the_smoothed_data(sde, noise_level):
    means, stds = torch.tensor([[-2.0, 0.0], [1.0, 1.5]]).double(), torch.tensor([0.5, 0.3]).double()
    weights = torch.tensor([0.3, 0.7]).double()
    x = grid_points(torch.tensor([-4.0, -3.0]), torch.tensor([4.0, 5.0])).double().requires_grad_()
    # the data plus a Gaussian of this width, whatever the process: written down from its definition
    variance = stds**2 + noise_level**2
    log_p = (weights.log() - variance.log() - (x[:, None] - means).square().sum(-1) / (2 * variance)).logsumexp(1)
    (exact,) = torch.autograd.grad(log_p.sum(), x)

    denoiser = GaussianMixtureDenoiser(means, stds, weights, sde)
    field = score_field(denoiser, x.detach(), time_near(sde, noise_level))
    assert torch.allclose(field, exact, rtol=1e-5, atol=1e-8)


def test_the_noise_level_is_limited_to_the_process():
    assert time_near(KarrasSDE(), 1e-5).item() == pytest.approx(0.002)
    assert time_near(KarrasSDE(), 1e5).item() == pytest.approx(80)
    assert time_near(VESDE(sigma_min=0.1), 0.01).item() == pytest.approx(1e-5)
    assert VPSDE().noise_level(time_near(VPSDE(), 0.01)).item() == pytest.approx(0.01, rel=1e-6)


def test_the_view_is_a_square_around_the_points_without_the_outliers():
    points = torch.stack([torch.linspace(-1, 3, 1001), torch.linspace(0, 1, 1001)], 1)
    low, high = limits(torch.cat([points, torch.tensor([[100.0, -100.0]])]))
    assert torch.allclose((high + low) / 2, torch.tensor([1.0, 0.5]), atol=0.02)
    assert torch.allclose(high - low, torch.full((2,), 4 * 1.3), atol=0.1)
    low, high = limits(torch.zeros(5, 2))
    assert (low < high).all()


def test_the_grid_covers_the_view():
    grid = grid_points(torch.tensor([0.0, -24.0]), torch.tensor([24.0, 24.0]))
    assert grid.shape == (ARROWS**2, 2)
    assert (grid.amin(0).tolist(), grid.amax(0).tolist()) == ([0.5, -23.0], [23.5, 23.0])
    assert len(grid.unique(dim=0)) == ARROWS**2


@pytest.mark.parametrize(
    ("firsts", "expected"),
    [
        ([0] * 12, 3),  # always in view: without the first quarter
        ([9] * 2 + [0] * 10, 3),
        ([9] * 6 + [0] * 6, 6),
        ([9, 9, 0, 0, 0, 0, 0, -9, 0, 0, 0, 0], 8),
        ([0] * 11 + [9], 3),  # ends out of view
    ],
)
def test_a_path_is_drawn_once_it_stays_in_view(firsts, expected):
    states = torch.tensor([[float(x), 0.0] for x in firsts])
    assert path_in_view(states, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])) == expected


def test_a_model_that_diverged_is_drawn():
    grid, real = grid_points(-torch.ones(2), torch.ones(2)), torch.zeros(5, 2)
    for value in (math.nan, math.inf, 0.0):
        bad = torch.full((len(grid), 2), value)
        picture = draw(grid, bad, 0.01, real, torch.full((6, 3, 2), value), -torch.ones(2), torch.ones(2))
        assert picture.dtype == torch.uint8
        assert picture.shape[0] == 3


# ---- its picture


@pytest.fixture
def drawn(monkeypatch):
    """What the picture was drawn from, call by call; the picture itself is a small grey one."""
    calls: list[SimpleNamespace] = []

    def record(grid, field, noise_level, real, states, low, high):
        calls.append(SimpleNamespace(grid=grid, field=field, level=noise_level, real=real, states=states))
        return torch.full((3, 4, 6), 127, dtype=torch.uint8)

    monkeypatch.setattr(vector_field, "draw", record)
    return calls


def test_the_picture_is_of_the_ema_weights(fit, drawn):
    module, data, callback = make_points_module(), Cloud(), VectorField(EulerMaruyama(6), 25, noise_level=0.02)
    watch = Unnoticed(callback)
    fit(callback, module=module, data=data, max_epochs=2)
    assert watch.checked == len(drawn) == 2
    last = drawn[-1]
    assert last.level == pytest.approx(0.02)
    assert torch.equal(last.real, data.held_out[draw_some(25, 40, seed=0)])

    generator = torch.Generator().manual_seed(derive_seed(0, Stream.FIELD))
    states = module.sample(EulerMaruyama(6), 25, generator=generator, trajectory=True)
    assert states.shape == (7, 25, 2)
    assert torch.equal(last.states, states)

    module.eval()
    with torch.no_grad():
        own = module.denoiser.score(last.grid, torch.full((len(last.grid),), 0.02))
        with module.ema_weights():
            averaged = module.denoiser.score(last.grid, torch.full((len(last.grid),), 0.02))
    assert torch.allclose(last.field, averaged, rtol=1e-4)
    assert not torch.allclose(last.field, own, rtol=1e-4)


def test_the_noise_of_the_picture_is_the_same_each_time(fit, drawn):
    fit(VectorField(EulerMaruyama(3), 5), module=make_points_module(optimizer=FROZEN), max_epochs=2)
    assert torch.equal(drawn[0].states, drawn[1].states)
    assert torch.equal(drawn[0].field, drawn[1].field)


def test_with_classes_the_field_is_of_class_0(fit, drawn):
    module = make_points_module(num_classes=2)
    fit(VectorField(EulerMaruyama(1), 4), module=module, limit_val_batches=0)
    # what comes before is the trial of the network on one example
    (_, of_field), (_, of_samples) = [call for call in module.network.seen if not call[0]][-2:]
    assert of_field.tolist() == [0] * ARROWS**2
    assert of_samples.tolist() == [0, 1, 0, 1]


def test_a_real_picture_on_disk_and_with_the_loggers(fit, tmp_path):
    tensorboard = TensorBoardLogger(tmp_path / "tb")
    callback = VectorField(num_samples=10, every_n_epochs=2, name="points")
    fit(callback, max_epochs=3, logger=[RunLogger(tmp_path, "run"), tensorboard])
    names = sorted(path.name for path in (fit.folder / "points").iterdir())
    assert names == ["epoch=0001.png", "epoch=0002.png"]
    picture = pixels(fit.folder / "points" / names[-1])
    assert picture.shape == (3, 540, 1500)
    assert len(picture.flatten(1).unique(dim=1)[0]) > 50  # not blank
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    assert [(image.height, image.width) for image in events.Images("points")] == [(540, 1500)] * 2


def test_a_trial_run_draws_and_leaves_no_picture(fit, drawn, tmp_path):
    fit(VectorField(num_samples=2), fast_dev_run=True)
    assert len(drawn) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_other_processes_ask_for_the_folder_and_draw_nothing(drawn, monkeypatch):
    asked = []
    trainer = SimpleNamespace(
        current_epoch=0, max_epochs=1, max_steps=-1, should_stop=False, is_global_zero=False, datamodule=Cloud()
    )
    monkeypatch.setattr(ScoreModule, "sample", lambda *_, **__: pytest.fail("drawn"))
    monkeypatch.setattr("diffusion_lightning.callbacks.pictures.run_folder", lambda _: asked.append(1) or Path())
    VectorField().on_train_epoch_end(trainer, make_points_module())
    assert asked == [1]


# ---- the distance


def test_the_distance_is_that_of_the_ema_samples_to_the_held_out_points(fit):
    module, data, callback = make_points_module(), Cloud(), SlicedWasserstein(EulerMaruyama(6), 30)
    watch = Unnoticed(callback)
    trainer = fit(callback, module=module, data=data)
    assert watch.checked == 1
    assert callback.name == LABEL

    generator = torch.Generator().manual_seed(derive_seed(0, Stream.DISTANCE))
    samples = module.sample(EulerMaruyama(6), 30, generator=generator)
    expected = sliced_wasserstein(samples, data.held_out[draw_some(30, 40, seed=0)], generator=generator)
    assert expected > 0.01
    assert trainer.callback_metrics[LABEL].item() == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_frozen_weights_is_the_same_each_due_epoch(fit):
    callback = SlicedWasserstein(EulerMaruyama(3), 30, every_n_epochs=2)
    fit(callback, module=make_points_module(optimizer=FROZEN), max_epochs=5)
    logged = [(row["epoch"], row[LABEL]) for row in rows(fit.folder / "metrics.csv") if row[LABEL]]
    assert [epoch for epoch, _ in logged] == ["1", "3", "4"]
    assert len({value for _, value in logged}) == 1


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_distance_after_validate_and_test(make_trainer, stage):
    trainer = make_trainer(callbacks=[SlicedWasserstein(num_samples=30)])
    (metrics,) = getattr(trainer, stage)(make_points_module(), datamodule=Cloud(), verbose=False)
    assert set(metrics) == {f"{stage.replace('validate', 'val')}/loss", LABEL}


def test_a_diverged_model_has_no_distance_and_goes_on(fit):
    module = make_points_module(optimizer=partial(torch.optim.SGD, lr=math.nan), ema_decay=0.0)
    with pytest.warns(UserWarning, match=r"all 30 samples are not finite .*; sliced_wasserstein@30 is nan"):
        trainer = fit(SlicedWasserstein(num_samples=30), module=module)
    assert math.isnan(trainer.callback_metrics[LABEL].item())


def test_more_samples_than_held_out_points_are_refused_before_training(fit):
    module = make_points_module()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(ValueError, match="num_samples=41: the data holds out 40 points"):
        fit(SlicedWasserstein(num_samples=41), module=module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    fit(SlicedWasserstein(num_samples=40))


# ---- both


@pytest.mark.parametrize(
    ("callback", "instead"),
    [(VectorField, "SampleGrid or DenoisingProcess"), (SlicedWasserstein, "FIDCallback")],
)
def test_data_without_held_out_points_is_refused(make_module, make_data, callback, instead):
    def setup(data: Any) -> None:
        callback().setup(SimpleNamespace(datamodule=data), make_module(), "fit")

    message = (
        rf"{callback.__name__} needs data with held-out points.*EmbeddedMNIST has shape \(1, 28, 28\): use {instead}"
    )
    with pytest.raises(ValueError, match=message):
        setup(make_data())
    in_space = Cloud()
    in_space.shape, in_space.held_out = (3,), torch.zeros(3000, 3)
    with pytest.raises(ValueError, match=r"Cloud has shape \(3,\)"):
        setup(in_space)


def test_bad_arguments_are_named():
    for callback in (VectorField, SlicedWasserstein):
        for name in ("num_samples", "every_n_epochs"):
            with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
                callback(**{name: 0})
        with pytest.raises(ValueError, match=r"t_min=80\.0: must be"):
            callback(Heun(2, t_min=80.0)).setup(SimpleNamespace(datamodule=Cloud()), make_points_module(), "fit")
    for level in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"noise_level={level}: must be positive"):
            VectorField(noise_level=level)


def test_arguments_are_kept():
    arguments = {"sampler": Heun(2), "num_samples": 3, "every_n_epochs": 5}
    distance = SlicedWasserstein(**arguments)
    assert {name: getattr(distance, name) for name in arguments} == arguments
    arguments |= {"noise_level": 0.5, "name": "other"}
    field = VectorField(**arguments)
    assert {name: getattr(field, name) for name in arguments} == arguments


def test_points_are_sampled_to_a_plot_or_to_numbers_and_not_to_pictures(tmp_path, make_trainer, make_module, capsys):
    module = make_module(network=MLP(), sde=VPSDE(), parameterization=NoisePrediction())
    trainer = make_trainer(callbacks=[SampleWriter()])
    data = Points(num_predict=4)
    trainer.fit(module, datamodule=data)
    with pytest.raises(ValueError, match=r"an example of this model has shape \(2,\): use lightning sample"):
        trainer.predict(module, datamodule=data)

    path = tmp_path / "points.ckpt"
    trainer.save_checkpoint(path)
    sample = ["sample", "--ckpt_path", str(path), "--num", "5", "--quiet", "--output"]
    cli.main([*sample, str(tmp_path / "x.npz")])
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["samples"].shape == (5, 2)
        assert np.isfinite(arrays["samples"]).all()
    cli.main([*sample, str(tmp_path / "x.png")])
    assert Image.open(tmp_path / "x.png").size[0] >= 300
    with pytest.raises(SystemExit):
        cli.main([*sample, str(tmp_path / "folder")])
    assert "points are written as .png (a plot) or .npz" in capsys.readouterr().err
