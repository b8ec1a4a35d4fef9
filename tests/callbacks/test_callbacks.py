import csv
import itertools
import math
import random
import re
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from diffusion_lightning import (
    BestCheckpoint,
    DenoisingProcess,
    EulerMaruyama,
    FIDCallback,
    LastCheckpoint,
    RunLogger,
    SampleGrid,
    SampleWriter,
    ScoreModule,
    TrainingProgressBar,
    UNet,
    WandbLogger,
)
from diffusion_lightning.callbacks import progress, sample_grid
from diffusion_lightning.callbacks.pictures import check_at_least_one, is_due, leave_picture, share
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.images import image_grid, to_uint8, visible
from diffusion_lightning.metrics.digits import JudgedDigitFeatures
from diffusion_lightning.metrics.extrapolation import infinite_frechet_distance
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.metrics.fid import ReferenceFID
from diffusion_lightning.metrics.kernel_distance import KernelDistance
from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.randomness import Stream, derive_seed
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint
from diffusion_lightning.training.resumption import metrics_of

FROZEN = partial(torch.optim.SGD, lr=0.0)


class Patches(nn.Module):
    """Sixteen sums of pixels over patches, for a Fréchet distance that costs nothing."""

    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 7).flatten(1)


class Unmoved(Callback):
    """Checks, wrapped around another callback's hook, that the global generators are where they were."""

    def __init__(self, callback: Any) -> None:
        self.checked = 0
        original = callback.on_train_epoch_end

        def watched(*args: Any) -> None:
            before = torch.get_rng_state(), random.getstate()
            original(*args)
            assert torch.equal(torch.get_rng_state(), before[0])
            assert random.getstate() == before[1]
            self.checked += 1

        callback.on_train_epoch_end = watched


def pixels(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fit(make_module, make_trainer, make_data, tmp_path):
    """Trains a small module with the given callbacks in the run folder tmp_path/run/version_0."""

    def run(*callbacks: Callback, module: Any = None, data: Any = None, ckpt: Any = None, **settings: Any) -> Any:
        seed_everything(0, verbose=False)
        logger = RunLogger(tmp_path, "run", tmp_path / "run" / "version_0" if ckpt else None)
        settings = {"logger": logger, "limit_train_batches": 2, **settings}
        trainer = make_trainer(callbacks=list(callbacks), **settings)
        trainer.fit(module or make_module(ema_decay=0.0), datamodule=data or make_data(), ckpt_path=ckpt)
        return trainer

    run.folder = tmp_path / "run" / "version_0"
    return run


# ---- when, and how much


@pytest.mark.parametrize(
    ("epoch", "settings", "due"),
    [
        (0, {}, False),
        (1, {}, False),
        (2, {}, True),
        (5, {}, True),
        (6, {"max_epochs": 7}, True),
        (6, {"max_epochs": 8}, False),
        (6, {"max_epochs": None}, False),
        (6, {"max_epochs": -1, "max_steps": 100, "global_step": 99}, False),
        (6, {"max_epochs": -1, "max_steps": 100, "global_step": 100}, True),
        (6, {"should_stop": True}, True),
    ],
)
def test_due_every_third_epoch_and_at_the_end(epoch, settings, due):
    defaults = {"max_epochs": 1000, "max_steps": -1, "global_step": 10, "should_stop": False}
    assert is_due(SimpleNamespace(current_epoch=epoch, **{**defaults, **settings}), 3) is due


def test_shares_add_up():
    for total in range(1, 20):
        for world in range(1, 6):
            shares = [share(total, world, rank) for rank in range(world)]
            assert sum(shares) == total
            assert max(shares) - min(shares) <= 1
            assert shares == sorted(shares, reverse=True)


def test_numbers_below_one_are_named():
    check_at_least_one(a=1, b=2)
    with pytest.raises(ValueError, match="b=0: must be at least 1"):
        check_at_least_one(a=1, b=0)
    with pytest.raises(ValueError, match="b=nan: must be at least 1"):
        check_at_least_one(a=1, b=float("nan"))
    for make in (SampleGrid, FIDCallback):
        with pytest.raises(ValueError, match="every_n_epochs=0"):
            make(every_n_epochs=0)
        with pytest.raises(ValueError, match="batch_size=-1"):
            make(batch_size=-1)
    with pytest.raises(ValueError, match="num_samples=0: must be at least 1"):
        SampleGrid(num_samples=0)
    with pytest.raises(ValueError, match="animate='yes': must be one of never, last, always"):
        SampleGrid(animate="yes")
    with pytest.raises(ValueError, match="num_samples=1: must be at least 2"):
        FIDCallback(num_samples=1)


# ---- the grid


def test_a_grid_of_the_ema_samples_every_epoch(make_module, fit):
    module = make_module(ema_decay=0.5)
    grid = SampleGrid(EulerMaruyama(3), num_samples=5, batch_size=2)
    watch = Unmoved(grid)
    fit(grid, module=module, max_epochs=2)
    assert watch.checked == 2
    names = sorted(path.name for path in (fit.folder / "samples").iterdir())
    assert names == ["epoch=0000.png", "epoch=0001.png"]
    picture = pixels(fit.folder / "samples" / "epoch=0001.png")
    assert picture.shape == (3, 2 * 30 + 2, 3 * 30 + 2)

    generator = torch.Generator().manual_seed(derive_seed(0, 0, Stream.GRID))
    expected = image_grid(module.sample(EulerMaruyama(3), 5, generator=generator, batch_size=2))
    assert torch.equal(picture, expected)
    assert not torch.equal(picture, pixels(fit.folder / "samples" / "epoch=0000.png"))


def test_the_noise_is_the_same_each_time(make_module, fit):
    frozen = make_module(optimizer=FROZEN)
    fit(SampleGrid(EulerMaruyama(3), num_samples=4), module=frozen, max_epochs=2)
    first, second = sorted((fit.folder / "samples").iterdir())
    assert first.read_bytes() == second.read_bytes()


def frames(path: Path) -> tuple[list[Tensor], list[int]]:
    """The pictures of an animation, and how many milliseconds each is shown."""
    found, times = [], []
    with Image.open(path) as file:
        for i in range(file.n_frames):
            file.seek(i)
            found.append(torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1))
            times.append(file.info["duration"])
    return found, times


def test_the_last_grid_is_animated_on_its_way_out_of_the_noise(make_module, fit):
    module = make_module(ema_decay=0.5)
    fit(SampleGrid(EulerMaruyama(50), 5, batch_size=2, animate="last"), module=module, max_epochs=2)
    names = sorted(path.name for path in (fit.folder / "samples").iterdir())
    assert names == ["epoch=0000.png", "epoch=0001.gif", "epoch=0001.png"]
    found, times = frames(fit.folder / "samples" / "epoch=0001.gif")
    assert times == [100] * 39 + [2000]
    assert torch.equal(found[-1], pixels(fit.folder / "samples" / "epoch=0001.png"))

    generator = torch.Generator().manual_seed(derive_seed(0, 0, Stream.GRID))
    states = module.sample(EulerMaruyama(50), 5, generator=generator, batch_size=2, trajectory=True)
    assert states[0].std() > 70
    for i in (0, 1, 20, 38):
        assert torch.equal(found[i], image_grid(visible(states[round(i * 50 / 39)])))
    assert torch.equal(found[-1], image_grid(states[-1]))


def test_every_grid_is_animated_or_none(make_module, fit):
    frozen = make_module(optimizer=FROZEN)
    sampler = EulerMaruyama(2)
    always = SampleGrid(sampler, num_samples=2, animate="always")
    never = SampleGrid(sampler, num_samples=2, name="never")
    fit(always, never, module=frozen, max_epochs=2)
    first, second = sorted((fit.folder / "samples").glob("*.gif"))
    assert first.read_bytes() == second.read_bytes()  # the same noise
    assert frames(first)[1] == [400, 400, 2000]
    assert not list((fit.folder / "never").glob("*.gif"))
    for epoch in range(2):  # being animated changes no grid
        one, other = (fit.folder / name / f"epoch=000{epoch}.png" for name in ("samples", "never"))
        assert one.read_bytes() == other.read_bytes()


def test_a_training_that_is_stopped_ends_with_an_animation(fit):
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    fit(SampleGrid(num_samples=2, every_n_epochs=5, animate="last"), Stop(), max_epochs=9, min_epochs=0)
    assert sorted(path.name for path in (fit.folder / "samples").iterdir()) == ["epoch=0000.gif", "epoch=0000.png"]


def test_grids_every_n_epochs_and_after_the_last(fit):
    fit(SampleGrid(num_samples=1, every_n_epochs=2), max_epochs=3, limit_train_batches=1)
    assert sorted(path.name for path in (fit.folder / "samples").iterdir()) == ["epoch=0001.png", "epoch=0002.png"]


def test_several_grids_and_the_modules_own_sampler(make_module, fit):
    module = make_module()
    fit(SampleGrid(num_samples=2, name="own"), SampleGrid(EulerMaruyama(2), num_samples=2, name="other"), module=module)
    own, other = (pixels(fit.folder / name / "epoch=0000.png") for name in ("own", "other"))
    assert not torch.equal(own, other)
    assert module.sampler.nfe == 3  # the last call of Heun's two steps was for the grid
    assert module.training


def test_a_sampler_that_does_not_fit_is_found_before_training(make_module, fit):
    module = make_module()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(ValueError, match=r"t_min=80\.0: must be in"):
        fit(SampleGrid(EulerMaruyama(2, t_min=80.0)), module=module)
    with pytest.raises(ValueError, match=r"t_min=80\.0: must be in"):
        fit(FIDCallback(EulerMaruyama(2, t_min=80.0)), module=module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not fit.folder.exists()


def test_a_trial_run_leaves_no_pictures(fit, tmp_path):
    fit(SampleGrid(num_samples=2), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_pictures_go_to_every_logger_that_shows_them(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, *args, **kwargs: shown.append((args, kwargs)))
    tensorboard = TensorBoardLogger(tmp_path / "tb")
    loggers = [RunLogger(tmp_path, "run"), WandbLogger(), tensorboard]
    picture = torch.randint(256, (3, 8, 6), dtype=torch.uint8)
    path = tmp_path / "samples" / "epoch=0003.png"
    trainer = SimpleNamespace(loggers=loggers, global_step=70)
    leave_picture(trainer, "samples", picture, path)

    assert torch.equal(pixels(path), picture)
    assert shown == [(("samples", [str(path)]), {"step": 69, "caption": ["epoch=0003"]})]
    leave_picture(SimpleNamespace(loggers=[WandbLogger()], global_step=70), "samples", picture, path, "cats, dogs")
    assert shown[1][1]["caption"] == ["epoch=0003: cats, dogs"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tensorboard.experiment.flush()
    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.height, image.width) == (69, 8, 6)


def test_a_picture_that_cannot_be_written_is_told_once(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, *args, **kwargs: shown.append(args))
    (tmp_path / "samples").write_text("a file where the folder should be")
    trainer = SimpleNamespace(loggers=[WandbLogger()], global_step=3)
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"pictures in .*/samples cannot be written \(.*\): training goes on"):
        leave_picture(trainer, "samples", picture, tmp_path / "samples" / "epoch=0000.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leave_picture(trainer, "samples", picture, tmp_path / "samples" / "epoch=0001.png")
    assert shown == []


# ---- FID


@pytest.fixture
def short_data(make_data, monkeypatch):
    """Digits whose reference set for FID is the first 200 training images."""

    def make(**kwargs: Any) -> Any:
        data = make_data(**kwargs)
        monkeypatch.setattr(data, "fid_reference", lambda: iter([data.train_images[list(range(200))][0]]))
        return data

    return make


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (12, 8, 8)])
@pytest.mark.parametrize("callback", [SampleGrid, DenoisingProcess, FIDCallback])
def test_what_is_no_picture_is_refused_before_the_first_step(make_module, make_data, callback, shape):
    data = make_data()
    data.shape = shape
    line = (
        f"{callback.__name__} needs images (C, H, W) of 1 or 3 channels, but an example of this data has shape "
        f"{shape}: leave {callback.__name__} out; lightning sample --output samples.npz writes numbers"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        callback().check(make_module(), data)


def test_features_of_ones_own_take_images_of_any_channels(make_module, make_data, tmp_path):
    class Means(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3))

    data = make_data()
    data.shape = (12, 8, 8)
    fid = FIDCallback(feature=Means(), cache=str(tmp_path))
    fid.check(make_module(), data)
    assert fid.name == "fid/means@1000"


@pytest.mark.parametrize("callback", [SampleGrid, DenoisingProcess])
def test_values_that_a_picture_cannot_show_are_warned_of_once(make_module, callback, recwarn):
    batch = torch.tensor([[[[-1.0, 0.5]]]])
    callback().on_train_batch_start(None, make_module(), (batch, None), 0)
    assert not recwarn.list
    shown = callback()
    for index in range(2):
        shown.on_train_batch_start(None, make_module(), (4 * batch, None), index)
    (warning,) = recwarn.list
    assert f"{callback.__name__} shows values from -1 to 1, those of the training images reach 4:" in str(
        warning.message
    )


def test_fid_is_logged_by_its_name(fit, short_data, tmp_path):
    callback = FIDCallback(EulerMaruyama(2), num_samples=7, batch_size=3, cache=str(tmp_path / "cache"))
    watch = Unmoved(callback)
    trainer = fit(callback, data=short_data())
    assert watch.checked == 1
    assert callback.name == "fid/digits@7"
    value = trainer.callback_metrics["fid/digits@7"].item()
    assert value > 0
    logged = [row["fid/digits@7"] for row in rows(fit.folder / "metrics.csv") if row["fid/digits@7"]]
    assert [float(x) for x in logged] == pytest.approx([value])
    assert len(list((tmp_path / "cache" / "fid").iterdir())) == 1


def test_fid_is_that_of_the_ema_samples_as_8_bit_images(make_module, fit, short_data, tmp_path):
    module, data = make_module(ema_decay=0.5), short_data()
    callback = FIDCallback(EulerMaruyama(2), num_samples=21, feature=Patches(), batch_size=8, cache=str(tmp_path))
    trainer = fit(callback, module=module, data=data)

    generator = torch.Generator().manual_seed(derive_seed(0, 0, Stream.FID))
    fid = ReferenceFID(Patches(), tmp_path / "other")
    fid.set_reference(data.fid_reference(), "data")
    fid.update(to_uint8(module.sample(EulerMaruyama(2), 21, generator=generator, batch_size=8)))
    assert trainer.callback_metrics["fid/patches@21"].item() == pytest.approx(fid.compute(), rel=1e-5)


def test_fid_of_frozen_weights_is_the_same_each_epoch_and_reads_the_reference_once(
    make_module, fit, make_data, monkeypatch, tmp_path
):
    data, reads = make_data(), []
    monkeypatch.setattr(
        data, "fid_reference", lambda: reads.append(1) or iter([data.train_images[list(range(200))][0]])
    )
    callback = FIDCallback(EulerMaruyama(2), num_samples=9, feature=Patches(), cache=str(tmp_path))
    module = make_module(optimizer=FROZEN)
    fit(callback, module=module, data=data, max_epochs=3)
    values = [row["fid/patches@9"] for row in rows(fit.folder / "metrics.csv") if row["fid/patches@9"]]
    assert len(values) == 3
    assert len(set(values)) == 1
    assert len(reads) == 1


def test_fid_every_n_epochs_and_after_the_last(fit, short_data, tmp_path):
    callback = FIDCallback(num_samples=4, feature=Patches(), every_n_epochs=2, cache=str(tmp_path))
    fit(callback, data=short_data(), max_epochs=3, limit_train_batches=1)
    epochs = [row["epoch"] for row in rows(fit.folder / "metrics.csv") if row["fid/patches@4"]]
    assert epochs == ["1", "2"]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_fid_after_validate_and_test(make_module, make_trainer, short_data, tmp_path, stage):
    callback = FIDCallback(num_samples=4, feature=Patches(), cache=str(tmp_path))
    trainer = make_trainer(callbacks=[callback], limit_test_batches=1)
    (metrics,) = getattr(trainer, stage)(make_module(), datamodule=short_data(), verbose=False)
    assert set(metrics) == {f"{stage.replace('validate', 'val')}/loss", "fid/patches@4"}


def few(data: Any, count: int = 300) -> Any:
    """The data with so few training images."""
    train, held_out = data.sets()
    data._images = TensorImages(train.images[:count], train.labels[:count]), held_out
    return data


def test_the_kernel_distance_and_the_extrapolated_fid_of_the_same_samples(make_module, fit, make_data, tmp_path):
    module, data = make_module(ema_decay=0.5), few(make_data())
    network, cache = Patches(), tmp_path / "cache"
    callback = FIDCallback(EulerMaruyama(2), 70, network, batch_size=32, cache=str(cache), extrapolate=True)
    found = fit(callback, module=module, data=data).callback_metrics
    generator = torch.Generator().manual_seed(derive_seed(0, 0, Stream.FID))
    batches = [module.sample(EulerMaruyama(2), size, generator=generator) for size in (32, 32, 6)]
    features, real = network(to_uint8(torch.cat(batches))), network(data.train_images.images)
    assert found["kid/patches@70"].item() == pytest.approx(KernelDistance(real)(features), rel=1e-4)
    value, error = infinite_frechet_distance(features, Moments.of(real), seed=0)
    assert found["fid_infinity/patches@70"].item() == pytest.approx(value, rel=1e-3)
    assert found["fid_infinity_error/patches@70"].item() == pytest.approx(error, rel=1e-3)
    assert len(list((cache / "features").iterdir())) == 1
    line = "num_samples=67: must be at least 68 to extrapolate FID in 16 features; or leave extrapolate out"
    with pytest.raises(ValueError, match=line):
        FIDCallback(num_samples=67, feature=network, extrapolate=True).check(module, data)


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The classes that samples are drawn of, in order; the samples are images of their class's number."""
    classes: list[int] = []

    def sample(self, sampler, num, *, condition, trajectory=False, **kwargs):
        labels = condition["labels"]
        classes.extend(labels.tolist())
        images = labels[:, None, None, None].expand(num, 1, 28, 28).float() / 10
        return images.expand(3, *images.shape) if trajectory else images

    monkeypatch.setattr(ScoreModule, "sample", sample)
    return classes


@pytest.fixture
def labelled(make_module):
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    return make_module(network=network)


def test_fid_takes_the_classes_in_the_shares_of_the_data(labelled, fit, short_data, digits, drawn, caplog, tmp_path):
    data, counts = short_data(), [10, 10, 10, 10, 10, 10, 10, 10, 20, 100]
    train, held_out = digits
    kept = torch.cat([(train.labels == digit).nonzero()[:count, 0] for digit, count in enumerate(counts)])
    data._images = TensorImages(train.images[kept], train.labels[kept]), held_out
    callback = FIDCallback(num_samples=40, feature=Patches(), batch_size=7, cache=str(tmp_path))
    with caplog.at_level("INFO"):
        fit(callback, module=labelled, data=data)
    assert [drawn.count(digit) for digit in range(10)] == [2, 2, 2, 2, 2, 2, 2, 2, 4, 20]
    assert "fid/patches@40: classes of the samples in the training data's shares" in caplog.text


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_the_processes_share_the_classes_of_fid(labelled, short_data, drawn, monkeypatch, tmp_path, world):
    callback = FIDCallback(num_samples=40, feature=Patches(), batch_size=7, cache=str(tmp_path))
    callback.setup(SimpleNamespace(datamodule=short_data()), labelled, "fit")
    callback._fid.set_reference(short_data().fid_reference(), "data")
    callback._has_reference = True
    monkeypatch.setattr(callback._fid, "compute", lambda: 1.0)
    monkeypatch.setattr(labelled, "log", lambda *_, **__: None)
    for counts, expected in (
        ([5, 1, 1, 1, 1, 1, 1, 1, 1, 7], [10, 2, 2, 2, 2, 2, 2, 2, 2, 14]),
        (None, [4] * 10),  # in turn, where the data are not known
    ):
        labelled.class_counts = counts
        drawn.clear()
        for rank in range(world):
            callback.evaluate(process(world, rank), labelled)
        assert [drawn.count(digit) for digit in range(10)] == expected


@pytest.mark.parametrize("animate", ["never", "always"])
@pytest.mark.parametrize("world", [1, 3, 8, 64])
def test_the_processes_share_the_classes_of_a_grid(labelled, drawn, monkeypatch, world, animate):
    """Sample i of the grid has class i mod 10, and is shown at place i, whatever the number of processes."""
    shown: list[Tensor] = []
    monkeypatch.setattr(sample_grid, "image_grid", lambda x, _: shown.append(x) or torch.zeros(3, 4, 4))
    for name in ("leave_picture", "leave_animation"):
        monkeypatch.setattr(sample_grid, name, lambda *_, **__: None)
    callback, parts = SampleGrid(num_samples=64, animate=animate), []
    for rank in reversed(range(world)):  # the first process has what all have drawn
        monkeypatch.setattr(labelled, "all_gather", lambda x: parts.insert(0, x) or torch.stack([*parts]))
        callback.on_train_epoch_end(process(world, rank), labelled)
    assert len(parts) == world
    for images in shown:
        assert torch.equal((10 * images[:, 0, 0, 0]).round().long(), torch.arange(64) % 10)
    assert len(shown) == {"never": 1, "always": 4}[animate]


def process(world_size: int, rank: int) -> SimpleNamespace:
    """What callbacks that draw ask of the trainer of one of several processes, at the end of the last epoch."""
    return SimpleNamespace(
        **{"world_size": world_size, "global_rank": rank, "is_global_zero": rank == 0, "fast_dev_run": False},
        **{"current_epoch": 0, "max_epochs": 1, "max_steps": -1, "log_dir": "run", "default_root_dir": "run"},
        datamodule=None,
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
    )


# ---- what a classifier reads in the samples of FID


@pytest.fixture
def real_samples(monkeypatch, digits):
    """Samples are held-out digits, of the class that was asked for plus a shift; of no class the first ones."""

    def draw(shift: int = 0) -> None:
        places = [(digits[1].labels == digit).nonzero()[:, 0] for digit in range(10)]

        def sample(self, sampler, num, *, condition, **kwargs):
            labels = condition.get("labels")
            asked = range(num) if labels is None else [int(places[(c + shift) % 10][i]) for i, c in enumerate(labels)]
            return digits[1].images[torch.tensor(asked)] / 127.5 - 1

        monkeypatch.setattr(ScoreModule, "sample", sample)

    return draw


def read(trainer: Any) -> dict[str, float]:
    """What was logged of that."""
    names = ("agreement", "legible")
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(names)}


def test_samples_that_are_real_digits_are_read_as_those_are(labelled, fit, short_data, real_samples, tmp_path):
    real_samples()
    callback = FIDCallback(num_samples=200, batch_size=100, cache=str(tmp_path))
    trainer = fit(callback, module=labelled, data=short_data())
    found, network, held_out = read(trainer), JudgedDigitFeatures(), short_data().held_out_images
    logits = network.logits(network(held_out.images))
    agree, legible = logits.argmax(1) == held_out.labels, logits.softmax(1).max(1).values >= 0.9
    drawn = torch.cat([(held_out.labels == digit).nonzero()[digit:100:10, 0] for digit in range(10)])
    p, q = (share[drawn].double().mean().item() for share in (agree, legible))
    assert found == {
        "agreement/digits@200": pytest.approx(p),
        "agreement_error/digits@200": pytest.approx(math.sqrt(p * (1 - p) / 200)),
        "agreement/digits_real@1000": pytest.approx(agree.double().mean().item()),
        "legible/digits@200": pytest.approx(q),
        "legible_error/digits@200": pytest.approx(math.sqrt(q * (1 - q) / 200)),
        "legible/digits_real@1000": pytest.approx(legible.double().mean().item()),
    }
    assert min(found["agreement/digits@200"], found["legible/digits@200"]) > 0.97
    (logged,) = (row for row in rows(fit.folder / "metrics.csv") if row["agreement/digits@200"])
    assert float(logged["legible/digits@200"]) == pytest.approx(q)


def test_samples_of_another_class_than_asked_for_do_not_agree_and_are_legible(
    labelled, fit, short_data, real_samples, tmp_path
):
    real_samples(shift=1)
    found = read(fit(FIDCallback(num_samples=100, cache=str(tmp_path)), module=labelled, data=short_data()))
    assert found["agreement/digits@100"] < 0.02
    assert found["legible/digits@100"] > 0.97


def test_of_a_network_without_classes_legibility_alone(fit, short_data, real_samples, tmp_path):
    real_samples()
    found = read(fit(FIDCallback(num_samples=100, cache=str(tmp_path)), data=short_data()))
    assert found.keys() == {"legible/digits@100", "legible_error/digits@100", "legible/digits_real@1000"}
    assert found["legible/digits@100"] > 0.97


@pytest.mark.parametrize("letters", [list("abcdefghij"), None])
def test_nothing_is_read_of_other_classes_than_the_classifiers(labelled, fit, short_data, letters, tmp_path):
    data = short_data()
    data.class_names = letters
    trainer = fit(FIDCallback(num_samples=20, cache=str(tmp_path)), module=labelled, data=data)
    assert read(trainer) == {}
    assert "fid/digits@20" in trainer.callback_metrics


# ---- samples that are not finite


@pytest.fixture
def broken(monkeypatch):
    """The second of each batch of samples has an infinite value in its last state."""
    original = ScoreModule.sample

    def sample(self, *args, trajectory=False, **kwargs):
        samples = original(self, *args, trajectory=trajectory, **kwargs)
        (samples[-1] if trajectory else samples)[1, 0, 3, 3] = math.inf
        return samples

    monkeypatch.setattr(ScoreModule, "sample", sample)


def tiles(picture: Tensor, width: int) -> Tensor:
    """Which of a grid's 28×28 images are the tile with the cross; bool, row by row."""
    cross = to_uint8(torch.full((1, 28, 28), torch.nan))
    places = [(2 + 30 * row, 2 + 30 * column) for row in range(picture.shape[1] // 30) for column in range(width)]
    return torch.tensor([bool((picture[:, y : y + 28, x : x + 28] == cross).all()) for y, x in places])


def test_fid_of_a_sample_that_is_not_finite_is_nan(fit, short_data, broken, tmp_path):
    callback = FIDCallback(num_samples=8, feature=Patches(), batch_size=4, cache=str(tmp_path))
    with pytest.warns(UserWarning, match=r"2 of 8 samples are not finite .* smaller learning rate.*; fid/patches@8 is"):
        trainer = fit(callback, data=short_data())
    assert math.isnan(trainer.callback_metrics["fid/patches@8"])


def test_nothing_is_read_in_samples_that_are_not_finite(fit, short_data, broken, tmp_path):
    with pytest.warns(UserWarning, match="1 of 8 samples are not finite"):
        found = read(fit(FIDCallback(num_samples=8, cache=str(tmp_path)), data=short_data()))
    real = found.pop("legible/digits_real@1000")
    assert real > 0.98
    assert found.keys() == {"legible/digits@8", "legible_error/digits@8"}
    assert all(map(math.isnan, found.values()))


def test_pictures_mark_what_is_not_finite(fit, broken):
    callbacks = SampleGrid(num_samples=4, animate="always"), DenoisingProcess(num_samples=2, num_frames=2)
    with pytest.warns(UserWarning, match="samples are not finite") as told:
        fit(*callbacks)
    counts = {str(w.message)[:6] for w in told if "not finite" in str(w.message)}
    assert counts == {"1 of 4", "1 of 2"}
    grid = fit.folder / "samples" / "epoch=0000.png"
    assert tiles(pixels(grid), 2).tolist() == [False, True, False, False]
    assert tiles(frames(grid.with_suffix(".gif"))[0][-1], 2).tolist() == [False, True, False, False]
    assert tiles(pixels(fit.folder / "denoising" / "epoch=0000.png"), 2).tolist() == [False, False, False, True]


def test_predictions_mark_what_is_not_finite(make_module, make_trainer, make_data, broken, tmp_path):
    trainer = make_trainer(callbacks=[SampleWriter(str(tmp_path / "out"))])
    with pytest.warns(UserWarning, match="2 of 6 samples are not finite"):
        trainer.predict(make_module(), datamodule=make_data(batch_size=3, num_predict=6))
    cross = to_uint8(torch.full((1, 28, 28), torch.nan))[0].numpy()
    marked = [bool((np.asarray(Image.open(path)) == cross).all()) for path in sorted((tmp_path / "out").iterdir())]
    assert marked == [False, True, False, False, True, False]


@pytest.mark.parametrize(
    ("values", "best"), [((math.nan, 3.0, math.nan), ["epoch=0001.ckpt"]), ((math.nan, math.inf, math.nan), [])]
)
def test_what_is_no_number_is_never_the_best(fit, values, best):
    callbacks = GivenFID(*values), BestCheckpoint(), LastCheckpoint()
    fit(*callbacks, max_epochs=3, enable_checkpointing=True, limit_train_batches=1)
    assert names(fit.folder) == [*best, "last.ckpt", "previous.ckpt"]


def test_features_by_the_data_or_by_name(make_module, make_trainer, make_data):
    def made(feature: Any, data: Any) -> FIDCallback:
        callback = FIDCallback(num_samples=4, feature=feature)
        callback.setup(SimpleNamespace(datamodule=data), make_module(), "fit")
        return callback

    assert made("auto", make_data()).name == "fid/digits@4"
    assert isinstance(made("mnist", make_data())._fid.features, DigitFeatures)
    with pytest.raises(
        ValueError,
        match="feature='nonsense': must be 'auto', 'inception', 'inception_tf1', 'mnist', 'digits' or a module",
    ):
        made("nonsense", make_data())
    with pytest.raises(ValueError, match=r"LightningDataModule has no fid_reference\(\)"):
        made("auto", LightningDataModule())


FEW = {"enable_checkpointing": True, "limit_train_batches": 1}


def test_an_old_run_goes_on_in_the_features_that_it_was_begun_in(fit, short_data, caplog, tmp_path):
    """Its best checkpoint, and what waits for the old name, go on; a new run is in the new features."""

    def run(feature: str, epochs: int, ckpt: Path | None = None, *more: Callback) -> Any:
        fid = FIDCallback(EulerMaruyama(1), num_samples=4, feature=feature, cache=str(tmp_path))
        callbacks = fid, BestCheckpoint(), LastCheckpoint(), *more
        return fit(*callbacks, data=short_data(), ckpt=ckpt, max_epochs=epochs, **FEW)

    values = [run("mnist", 1).callback_metrics["fid/mnist@4"].item()]
    last = fit.folder / "checkpoints" / "last.ckpt"
    old = last.read_bytes()
    assert metrics_of(load_checkpoint(last)) >= {"fid/mnist@4", "val/loss"}
    with caplog.at_level("INFO"):
        trainer = run("auto", 2, last, EarlyStopping("fid/mnist@4", patience=9))
    assert "FIDCallback: feature=auto stays mnist, in which this run has been measured so far" in caplog.text
    best = next(c for c in trainer.callbacks if isinstance(c, BestCheckpoint))
    assert best.monitor == "fid/mnist@4"
    values.append(trainer.callback_metrics["fid/mnist@4"].item())
    assert values[0] != values[1]
    assert best.best_model_score.item() == min(values)
    assert not any("digits" in name for name in trainer.callback_metrics)

    caplog.clear()
    last.write_bytes(old)
    with caplog.at_level("INFO"):
        trainer = run("digits", 2, last)
    best = next(c for c in trainer.callbacks if isinstance(c, BestCheckpoint))
    assert best.monitor == "fid/digits@4"
    assert best.best_model_score == trainer.callback_metrics["fid/digits@4"]  # not compared with that in others
    assert "stays mnist" not in caplog.text
    assert (
        "BestCheckpoint: chosen by fid/digits@4 from now on, before it was by fid/mnist@4: those values do not compare"
        in caplog.text
    )


def test_what_waits_for_a_name_says_in_which_features_a_run_was_begun():
    """Before the first FID nothing else does."""
    states = {"BestCheckpoint{'monitor': 'fid/mnist@4', 'mode': 'min'}": {}, "LastCheckpoint{'monitor': None}": {}}
    assert metrics_of({"callbacks": states, KEY: {}}) == {"fid/mnist@4"}
    assert metrics_of({KEY: {"metrics": {"val/loss": 1.0}}}) == {"val/loss"}


# ---- checkpoints


class GivenFID(FIDCallback):
    """Logs the values it was given, one an epoch; none where there is None."""

    def __init__(self, *values: float | None) -> None:
        super().__init__(num_samples=2, feature=Patches())
        self.values = list(values)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        value = self.values.pop(0)
        if value is not None:
            pl_module.log(self.name, value)


def epoch_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_last_checkpoint_is_of_every_epoch(fit):
    seen = []

    class Watch(Callback):
        def on_before_zero_grad(self, *_):
            path = fit.folder / "checkpoints" / "last.ckpt"
            seen.append(epoch_of(path) if path.exists() else None)

    fit(LastCheckpoint(every_minutes=0), Watch(), max_epochs=3, limit_train_batches=1, enable_checkpointing=True)
    assert seen == [None, 0, 1]
    assert names(fit.folder) == ["last.ckpt", "previous.ckpt"]
    assert epoch_of(fit.folder / "checkpoints" / "last.ckpt") == 2


def test_the_last_checkpoint_more_often(fit):
    steps = []

    class Watch(Callback):
        def on_before_zero_grad(self, *_):
            path = fit.folder / "checkpoints" / "last.ckpt"
            steps.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else 0)

    fit(LastCheckpoint(every_n_train_steps=2), Watch(), limit_train_batches=6, enable_checkpointing=True)
    assert steps == [0, 0, 2, 2, 4, 4]
    assert names(fit.folder) == ["last.ckpt", "previous.ckpt"]


def test_one_best_checkpoint_by_fid(fit):
    callbacks = GivenFID(3.0, None, 1.0, 2.0), BestCheckpoint(), LastCheckpoint()
    fit(*callbacks, max_epochs=4, enable_checkpointing=True, limit_train_batches=1)
    assert names(fit.folder) == ["epoch=0002.ckpt", "last.ckpt", "previous.ckpt"]
    assert epoch_of(fit.folder / "checkpoints" / "epoch=0002.ckpt") == 2
    assert epoch_of(fit.folder / "checkpoints" / "last.ckpt") == 3


def test_an_old_fid_does_not_make_a_later_epoch_the_best(fit):
    fit(GivenFID(1.0, None, None), BestCheckpoint(), max_epochs=3, enable_checkpointing=True, limit_train_batches=1)
    assert names(fit.folder) == ["epoch=0000.ckpt"]


@pytest.mark.parametrize(("later", "best"), [(2.0, "epoch=0000.ckpt"), (0.5, "epoch=0001.ckpt")])
@pytest.mark.parametrize("order", [(BestCheckpoint, LastCheckpoint), (LastCheckpoint, BestCheckpoint)])
def test_the_best_is_still_known_after_a_resume(fit, later, best, order):
    settings = {"enable_checkpointing": True, "limit_train_batches": 1}
    fit(GivenFID(1.0), *(cls() for cls in order), max_epochs=1, **settings)
    last = fit.folder / "checkpoints" / "last.ckpt"
    fit(GivenFID(later), *(cls() for cls in order), ckpt=last, max_epochs=2, **settings)
    assert names(fit.folder) == [best, "last.ckpt", "previous.ckpt"]
    assert epoch_of(last) == 1


@pytest.mark.parametrize(
    ("again", "best", "void"),
    [
        ((2.0, 1.0), ["epoch=0002.ckpt"], False),  # as before
        ((2.5, 4.0), ["epoch=0001.ckpt", "epoch=0002.ckpt"], True),
        ((2.5, 1.0, 0.5), ["epoch=0003.ckpt"], False),
        ((2.5,), ["epoch=0001.ckpt", "epoch=0002.ckpt"], True),  # it ends before
        ((4.0, 5.0), ["epoch=0001.ckpt", "epoch=0002.ckpt"], True),  # the best before it, 3.0, is gone
    ],
)
def test_a_best_checkpoint_of_an_epoch_that_is_trained_again(fit, recwarn, again, best, void):
    """Its place is taken, or it stays and is told of once, however the run was killed after an older last.ckpt."""
    settings = {"enable_checkpointing": True, "limit_train_batches": 1}
    fit(GivenFID(3.0), BestCheckpoint(), LastCheckpoint(), max_epochs=1, **settings)
    last = fit.folder / "checkpoints" / "last.ckpt"
    older = last.read_bytes()
    fit(GivenFID(2.0, 1.0), BestCheckpoint(), LastCheckpoint(), ckpt=last, max_epochs=3, **settings)
    assert names(fit.folder) == ["epoch=0002.ckpt", "last.ckpt", "previous.ckpt"]
    last.write_bytes(older)
    fit(GivenFID(*again), BestCheckpoint(), LastCheckpoint(), ckpt=last, max_epochs=1 + len(again), **settings)
    assert [name for name in names(fit.folder) if name.startswith("epoch")] == best
    told = [str(warning.message) for warning in recwarn if "before it was resumed" in str(warning.message)]
    assert len(told) == void
    if void:
        assert told[0].startswith(f"{fit.folder / 'checkpoints' / 'epoch=0002.ckpt'} is of the run before")


def test_the_best_by_validation_loss_where_there_is_no_fid(fit):
    trainer = fit(BestCheckpoint(), max_epochs=3, enable_checkpointing=True)
    logged = [float(row["val/loss"]) for row in rows(fit.folder / "metrics.csv") if row["val/loss"]]
    assert len(logged) == 3
    assert names(fit.folder) == [f"epoch={logged.index(min(logged)):04d}.ckpt"]
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(min(logged))


# ---- predictions, progress


def test_predictions_are_written_by_their_number(make_module, make_trainer, make_data, tmp_path):
    module = make_module()
    writer = SampleWriter(str(tmp_path / "out"))
    batches = make_trainer(callbacks=[writer]).predict(module, datamodule=make_data(batch_size=3, num_predict=5))
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == [f"{n:06d}.png" for n in range(5)]
    for path, image in zip(written, to_uint8(torch.cat(batches)), strict=True):
        with Image.open(path) as file:
            assert np.array_equal(np.asarray(file), image[0].numpy())


def test_predictions_are_in_the_runs_folder_by_default(make_module, make_trainer, make_data, tmp_path):
    trainer = make_trainer(callbacks=[SampleWriter()], default_root_dir=tmp_path / "run")
    trainer.predict(make_module(), datamodule=make_data(num_predict=2), return_predictions=False)
    assert sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir()) == ["000000.png", "000001.png"]


def test_the_bar_shows_the_rate_of_training_steps_and_the_time_left(fit, monkeypatch):
    # a clock that goes on by one second each time a batch ends, and with every other look at it
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    seen = []

    class Watch(TrainingProgressBar):
        def get_metrics(self, trainer, pl_module):
            metrics = super().get_metrics(trainer, pl_module)
            seen.append(metrics)
            return metrics

    fit(Watch(), enable_progress_bar=True, limit_train_batches=3)
    training = [metrics for metrics in seen if "images/s" in metrics]
    assert training
    assert {metrics["images/s"] for metrics in training} == {"8"}  # a batch of eight each second
    assert training[-1]["left"] == "00:00"
    assert "train/loss_step" in training[-1]
    assert "v_num" not in training[-1]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"max_epochs": 5, "current_epoch": 2}, 3 * 10 - 4),
        ({"max_epochs": -1}, None),
        ({"max_epochs": None, "max_steps": 30, "global_step": 24}, 6),
        ({"max_epochs": -1, "max_steps": 30, "global_step": 24, "accumulate_grad_batches": 2}, 12),
        ({"max_epochs": 5, "current_epoch": 4, "max_steps": 30, "global_step": 29}, 1),
        ({"max_epochs": -1, "max_steps": 30, "global_step": 31}, 0),
    ],
)
def test_batches_left(settings, left):
    defaults = {
        "max_epochs": None,
        "max_steps": -1,
        "global_step": 0,
        "current_epoch": 0,
        "num_training_batches": 10,
        "accumulate_grad_batches": 1,
    }
    assert TrainingProgressBar._batches_left(SimpleNamespace(**{**defaults, **settings}), 4) == left
