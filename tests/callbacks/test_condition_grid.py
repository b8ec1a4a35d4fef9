"""The grid "condition | drawn | true", in one process and in two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from told_picture import ToldPicture

from diffusion_lightning import (
    ConditionGrid,
    ConditionSource,
    EmbeddedMNIST,
    EulerMaruyama,
    Heun,
    Inpainting,
    RunLogger,
    ScoreModule,
    TensorImages,
    UNet,
    restore,
)
from diffusion_lightning.callbacks.condition_grid import rows_of
from diffusion_lightning.images import image_grid, to_uint8
from diffusion_lightning.randomness import Stream, derive_seed
from diffusion_lightning.training.trained import TrainedModel

CONFIGS = Path(__file__).parents[2] / "configs"
QUARTER = ConditionSource(downsample=4)


def pixels(path):
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)


def tile(picture, row, column, side=28):
    top, left = 2 + row * (side + 2), 2 + column * (side + 2)
    return picture[:, top : top + side, left : left + side]


def drawn_by(module, conditions, own, rank, batch_size=256, sampler=None):
    """The samples of one process, each under the condition of its example."""
    generator = torch.Generator().manual_seed(derive_seed(0, rank, Stream.CONDITION_GRID))
    told = {"picture": conditions["picture"][own]}
    return module.sample(sampler, len(own), generator=generator, condition=told, batch_size=batch_size)


@pytest.fixture
def fit(make_module, make_trainer, make_data, tmp_path):
    """Trains a network that is told pictures, with the callback given."""

    def run(callback, images=None, **settings):
        seed_everything(0, verbose=False)
        module = make_module(network=ToldPicture(), ema_decay=0.5)
        data = make_data(condition=QUARTER)
        data._images = images or data._images
        trainer = make_trainer(callbacks=[callback], logger=RunLogger(tmp_path, "run"), **settings)
        trainer.fit(module, datamodule=data)
        return module, data

    run.folder = tmp_path / "run" / "version_0"
    return run


def test_a_row_is_the_condition_its_samples_and_the_truth(fit):
    module, data = fit(ConditionGrid(EulerMaruyama(3), num_examples=3, draws=2, batch_size=4), max_epochs=2)
    names = sorted(path.name for path in (fit.folder / "conditions").iterdir())
    assert names == ["epoch=0000.png", "epoch=0001.png"]
    picture = pixels(fit.folder / "conditions" / "epoch=0001.png")
    assert picture.shape == (3, 3 * 30 + 2, 4 * 30 + 2)

    indices = data.first_held_out(3)
    x, conditions = data.examples(indices)
    low = to_uint8(conditions["picture"]).repeat_interleave(4, -1).repeat_interleave(4, -2)
    own = torch.arange(6) // 2
    drawn = to_uint8(drawn_by(module, conditions, own, 0, 4, EulerMaruyama(3)))
    for row in range(3):
        assert torch.equal(tile(picture, row, 0), low[row].expand(3, -1, -1))
        assert torch.equal(tile(picture, row, 1), drawn[2 * row].expand(3, -1, -1))
        assert torch.equal(tile(picture, row, 2), drawn[2 * row + 1].expand(3, -1, -1))
        assert torch.equal(tile(picture, row, 3), to_uint8(x[row]).expand(3, -1, -1))
        assert torch.equal(tile(picture, row, 3), data.held_out_images[[int(indices[row])]][0][0].expand(3, -1, -1))
    other = drawn_by(module, {"picture": conditions["picture"].flip(0)}, own, 0, 4, EulerMaruyama(3))
    assert not torch.equal(to_uint8(other), drawn), "the condition matters"
    assert not torch.equal(picture, pixels(fit.folder / "conditions" / "epoch=0000.png"))


def test_rows_take_grey_beside_colour():
    pictures, x = torch.tensor([[[[-1.0, 1.0]]]]), torch.zeros(1, 3, 2, 4)
    rows = rows_of(pictures, torch.ones(1, 3, 2, 4), x)
    assert torch.equal(
        rows, image_grid(torch.stack([torch.tensor([-1.0, -1, 1, 1]).expand(3, 2, 4), x[0] + 1, x[0]]), 3)
    )


def test_fewer_held_out_than_rows_are_all(fit, digits):
    few = digits[1].images[:2], digits[1].labels[:2]
    fit(ConditionGrid(EulerMaruyama(2), num_examples=5), images=(digits[0], TensorImages(*few)))
    assert pixels(fit.folder / "conditions" / "epoch=0000.png").shape == (3, 2 * 30 + 2, 3 * 30 + 2)


TINY = """
trainer:
  accelerator: cpu
  devices: 2
  max_epochs: 1
  limit_train_batches: 1
  limit_val_batches: 1
  logger: null
  precision: 32-true
  enable_progress_bar: false
  callbacks:
    - class_path: diffusion_lightning.ConditionGrid
      init_args: {num_examples: 3, draws: 1}
    - class_path: diffusion_lightning.RestorationGrid
      init_args: {method: PGDM, num_examples: 3, draws: 1, sampler: {class_path: Heun, init_args: {steps: 2}}}
model:
  network: {class_path: told_picture.ToldPicture}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 4, condition: {downsample: 4}}}
"""


def test_two_processes_draw_a_part_each(tmp_path, environment):
    (tmp_path / "tiny.yaml").write_text(TINY)
    files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / "ddp.yaml", "tiny.yaml"]
    search = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", "fit", *(p for f in files for p in ("--config", str(f)))],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "quickstart" / "version_0"
    picture = pixels(run / "conditions" / "epoch=0000.png")
    assert picture.shape == (3, 3 * 30 + 2, 3 * 30 + 2)
    last = run / "checkpoints" / "last.ckpt"
    module = ScoreModule.load_from_checkpoint(last)
    data = EmbeddedMNIST(condition=QUARTER, seed=0)
    _, conditions = data.examples(data.first_held_out(3))
    shares = torch.tensor([0, 1]), torch.tensor([2, 2])  # equally many in each; the last is cut off
    drawn = torch.cat([drawn_by(module, conditions, own, rank) for rank, own in enumerate(shares)])
    for row in range(3):
        assert torch.equal(tile(picture, row, 1), to_uint8(drawn[row]).expand(3, -1, -1))
    restored = pixels(run / "restorations" / "epoch=0000.png")
    x = to_uint8(data.examples(data.first_held_out(3))[0])
    # each was drawn by one process, with noise of its own
    operator, denoiser = Inpainting(torch.arange(28)[:, None] < 14), TrainedModel.load(last).denoiser
    y = operator(data.examples(data.first_held_out(3))[0])
    expected = []
    for rank, own in enumerate(shares):
        noise = torch.Generator().manual_seed(derive_seed(0, 1 + rank, Stream.RESTORATION_GRID))
        expected += restore(denoiser, y[own], operator, "PGDM", 1, Heun(2), generator=noise).flatten(0, 1)
    for row in range(3):
        answer = tile(restored, row, 1)
        assert torch.equal(answer[0, :14], x[row, 0, :14])
        assert torch.equal(tile(restored, row, 4)[0], x[row, 0])
        assert torch.equal(answer, to_uint8(expected[row]).expand(3, -1, -1))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_examples", "draws", "every_n_epochs", "batch_size"])
def test_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        ConditionGrid(**{name: 0})


def test_data_and_network_must_have_a_picture_as_condition(make_module, make_data):
    told, grid = make_module(network=ToldPicture()), ConditionGrid()
    grid.check(told, make_data(condition=QUARTER))
    for data in (make_data(), None):
        with pytest.raises(ValueError, match=r"needs data whose condition is a picture.*--data.condition.downsample 4"):
            grid.check(told, data)
    with pytest.raises(ValueError, match=r"UNet is not: give --model.network.condition_channels 1"):
        grid.check(make_module(network=UNet(channels=(4,), embed_dim=8)), make_data(condition=QUARTER))
