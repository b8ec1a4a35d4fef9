import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from diffusion_lightning import EulerMaruyama, Heun, RunLogger, SampleGrid, ScoreModule, UNet, WandbLogger
from diffusion_lightning.callbacks import DenoisingProcess
from diffusion_lightning.callbacks.denoising_process import strips
from diffusion_lightning.images import to_uint8
from diffusion_lightning.randomness import Stream, derive_seed

FROZEN = partial(torch.optim.SGD, lr=0.0)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)


@pytest.fixture
def fit(make_module, make_trainer, make_data, tmp_path):
    """Trains a small module with the given callbacks in the run folder tmp_path/run/version_0."""

    def run(*callbacks: Callback, module: Any = None, data: Any = None, **settings: Any) -> ScoreModule:
        seed_everything(0, verbose=False)
        module = module or make_module(ema_decay=0.5)
        settings = {"logger": RunLogger(tmp_path, "run"), "limit_train_batches": 2, "limit_val_batches": 0, **settings}
        make_trainer(callbacks=list(callbacks), **settings).fit(module, datamodule=data or make_data())
        return module

    run.folder = tmp_path / "run" / "version_0"
    return run


# ---- trajectories of the module


def test_a_modules_trajectory_from_prior_to_sample(make_module):
    module, sampler = make_module(shape=(1, 28, 28)), EulerMaruyama(4)

    def draw(**kwargs: Any) -> Tensor:
        return module.sample(sampler, 5, generator=torch.Generator().manual_seed(0), batch_size=2, **kwargs)

    states = draw(trajectory=True)
    assert states.shape == (5, 5, 1, 28, 28)
    assert torch.equal(states[-1], draw())
    first_batch = module.denoiser.sde.prior((2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    assert torch.equal(states[0, :2], first_batch)


# ---- the picture


def test_one_row_a_sample_and_time_to_the_right():
    frames = torch.linspace(-1, 1, 6).reshape(3, 2, 1, 1, 1).expand(3, 2, 1, 4, 4)
    picture = strips(frames)
    assert picture.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    assert picture[0, 4::6, 4::6].tolist() == to_uint8(frames[:, :, 0, 0, 0]).T.tolist()


# ---- the callback


def test_a_picture_of_the_ema_samples_each_due_epoch(make_module, fit):
    module = make_module(ema_decay=0.5)
    fit(DenoisingProcess(EulerMaruyama(7), 3, 4, every_n_epochs=2), module=module, max_epochs=3)
    assert sorted(p.name for p in (fit.folder / "denoising").iterdir()) == ["epoch=0001.png", "epoch=0002.png"]
    picture = pixels(fit.folder / "denoising" / "epoch=0002.png")
    assert picture.shape == (3, 3 * 30 + 2, 4 * 30 + 2)

    generator = torch.Generator().manual_seed(derive_seed(0, Stream.DENOISING))
    states = module.sample(EulerMaruyama(7), 3, generator=generator, trajectory=True)
    assert torch.equal(picture, strips(states[[0, 2, 5, 7]]))
    with module.ema_weights():
        averaged = [p.clone() for p in module.network.parameters()]
    assert not all(torch.equal(a, p) for a, p in zip(averaged, module.network.parameters(), strict=True))


def test_the_noise_is_the_same_each_time_and_another_than_the_grids(make_module, fit):
    assert Stream.DENOISING != Stream.GRID
    fit(DenoisingProcess(Heun(3), 2), module=make_module(optimizer=FROZEN), max_epochs=2)
    first, second = sorted((fit.folder / "denoising").iterdir())
    assert first.read_bytes() == second.read_bytes()
    assert pixels(first).shape == (3, 2 * 30 + 2, 4 * 30 + 2)  # three steps have no ten states


def test_training_does_not_notice(make_module, fit):
    class Watched(DenoisingProcess):
        calls = 0

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            def state() -> list[Tensor]:
                return [torch.get_rng_state(), *(p.detach().clone() for p in pl_module.parameters())]

            before, python = state(), random.getstate()
            super().on_train_epoch_end(trainer, pl_module)
            assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
            assert random.getstate() == python
            assert pl_module.training
            self.calls += 1

    callback = Watched(EulerMaruyama(2), 2)
    with_it = fit(callback, max_epochs=2)
    without = fit(max_epochs=2)
    assert callback.calls == 2
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


def test_classes_in_turn(make_module, fit, monkeypatch):
    drawn: list[int] = []
    original = UNet.forward

    def forward(self: Any, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        if not self.training:
            drawn.extend(labels.tolist())
        return original(self, x, time_signal, labels)

    monkeypatch.setattr(UNet, "forward", forward)
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    fit(DenoisingProcess(EulerMaruyama(1), 12), module=make_module(network=network))
    assert drawn[1:] == [*range(10), 0, 1]  # the first is of the trial of the network


def test_the_picture_reaches_the_loggers(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tensorboard, wandb_logger = TensorBoardLogger(tmp_path / "tb"), WandbLogger(save_dir=str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    loggers = [RunLogger(tmp_path, "run"), tensorboard, wandb_logger]
    wandb.teardown()  # it reads the environment once
    fit(DenoisingProcess(num_samples=2, name="path"), logger=loggers)
    wandb.finish()
    wandb.teardown()
    picture = pixels(fit.folder / "path" / "epoch=0000.png")
    (media,) = (tmp_path / "wandb").rglob("media/images/path_*.png")
    assert torch.equal(pixels(media), picture)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(tensorboard.log_dir)
    events.Reload()
    (image,) = events.Images("path")
    assert (image.step, image.height, image.width) == (1, *picture.shape[1:])


def test_a_trial_run_leaves_no_picture(fit, tmp_path):
    fit(DenoisingProcess(num_samples=2), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_other_processes_ask_for_the_folder_and_draw_nothing(make_module, monkeypatch):
    asked = []
    trainer = SimpleNamespace(
        current_epoch=0, max_epochs=1, max_steps=-1, should_stop=False, is_global_zero=False, default_root_dir="."
    )
    monkeypatch.setattr(ScoreModule, "sample", lambda *_, **__: pytest.fail("drawn"))
    monkeypatch.setattr("diffusion_lightning.callbacks.pictures.run_folder", lambda trainer: asked.append(1) or Path())
    DenoisingProcess().on_train_epoch_end(trainer, make_module())
    assert asked == [1]


@pytest.mark.parametrize("callback", [SampleGrid, DenoisingProcess])
@pytest.mark.parametrize("known_by", ["data", "module"])
def test_points_are_refused_before_training(make_module, callback, known_by):
    data = LightningDataModule()
    if known_by == "data":
        data.shape = (2,)
    module = make_module(shape=(2,) if known_by == "module" else None)
    with pytest.raises(ValueError, match=rf"{callback.__name__} needs images.* \(2,\): use VectorField for points"):
        callback().setup(SimpleNamespace(datamodule=data), module, "fit")
    callback().setup(SimpleNamespace(datamodule=None), make_module(), "fit")  # a shape that is not known yet


def test_bad_arguments_are_named(make_module):
    for arguments, message in (
        ({"num_samples": 0}, "num_samples=0: must be at least 1"),
        ({"num_frames": 1}, "num_frames=1: must be at least 2"),
        ({"every_n_epochs": 0}, "every_n_epochs=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DenoisingProcess(**arguments)
    with pytest.raises(ValueError, match=r"t_min=80\.0: must be"):
        DenoisingProcess(Heun(2, t_min=80.0)).setup(SimpleNamespace(datamodule=None), make_module(), "fit")


def test_arguments_are_kept():
    arguments = {"sampler": Heun(2), "num_samples": 3, "num_frames": 4, "every_n_epochs": 5, "name": "other"}
    callback = DenoisingProcess(**arguments)
    assert {name: getattr(callback, name) for name in arguments} == arguments
    assert not isinstance(callback, nn.Module)
