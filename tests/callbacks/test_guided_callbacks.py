"""Guidance of what draws during training: its own, the module's, and a grid with a row for each weight."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_lightning import (
    ClassifierFreeGuidance,
    DenoisingProcess,
    FIDCallback,
    Heun,
    SampleGrid,
    ScoreModule,
    UNet,
)
from diffusion_lightning.images import image_grid, to_uint8, visible
from diffusion_lightning.randomness import Stream, derive_seed, global_seed

FROZEN = partial(torch.optim.SGD, lr=0.0)
TRIPLE = partial(ClassifierFreeGuidance, weight=3.0)


class Patches(nn.Module):
    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 7).flatten(1)


@pytest.fixture
def make(make_module):
    """Makes a conditional module that learns nothing."""

    def make(**kwargs: Any) -> ScoreModule:
        torch.manual_seed(1)
        network = UNet(
            channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10
        )
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.3)
        settings = {"condition_dropout": 0.1, "optimizer": FROZEN, "sampler": Heun(steps=2), "shape": (1, 28, 28)}
        return make_module(network=network, **{**settings, **kwargs})

    return make


@pytest.fixture
def fit(make, make_trainer, make_data):
    """Trains for one step with callbacks; the module, and what was logged."""

    def fit(*callbacks: Any, **kwargs: Any) -> tuple[ScoreModule, dict[str, Any]]:
        module = make(**kwargs)
        trainer = make_trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[*callbacks])
        trainer.fit(module, datamodule=make_data())
        return module, trainer.callback_metrics

    return fit


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def test_a_row_for_each_weight_of_the_same_noise(fit, tmp_path):
    weights = [0.0, 1.0, 2.5]
    module, _ = fit(SampleGrid(num_samples=3, guidance_weights=weights, animate="last"))
    seed = derive_seed(global_seed(), 0, Stream.GRID)
    rows = [
        module.sample(
            num=3,
            generator=torch.Generator().manual_seed(seed),
            guidance=partial(ClassifierFreeGuidance, weight=weight),
        )
        for weight in weights
    ]
    bare = module.sample(num=3, generator=torch.Generator().manual_seed(seed), guidance=None)
    assert torch.equal(rows[1], bare)  # weight 1 is the unguided model, bit for bit
    assert not torch.equal(rows[2], bare)
    expected = image_grid(torch.cat(rows), across=3)
    assert expected.shape == (3, 3 * 30 + 2, 3 * 30 + 2)
    assert np.array_equal(pixels(tmp_path / "samples" / "epoch=0000.png"), expected.permute(1, 2, 0).numpy())
    with Image.open(tmp_path / "samples" / "epoch=0000.gif") as animation:
        assert animation.size == (92, 92)


def test_more_samples_in_a_row_than_it_has_rows(fit, tmp_path):
    fit(SampleGrid(num_samples=5, guidance_weights=[1.0, 2.0]))
    assert pixels(tmp_path / "samples" / "epoch=0000.png").shape == (2 * 30 + 2, 5 * 30 + 2, 3)


def test_callbacks_take_their_own_or_the_module_s(fit, tmp_path):
    callbacks = [
        SampleGrid(num_samples=2, name="own"),
        SampleGrid(num_samples=2, name="other", guidance=TRIPLE),
        SampleGrid(num_samples=2, name="none", guidance=None),
        DenoisingProcess(num_samples=1, num_frames=3, name="strip", guidance=TRIPLE),
        DenoisingProcess(num_samples=1, num_frames=3, name="bare", guidance=None),
    ]
    module, _ = fit(*callbacks, guidance=partial(ClassifierFreeGuidance, weight=2.0))
    seed = derive_seed(global_seed(), 0, Stream.GRID)
    for name, guidance in (("own", "own"), ("other", TRIPLE), ("none", None)):
        drawn = module.sample(num=2, generator=torch.Generator().manual_seed(seed), guidance=guidance)
        expected = image_grid(drawn).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(tmp_path / name / "epoch=0000.png"), expected)
    strips = [pixels(tmp_path / name / "epoch=0000.png") for name in ("strip", "bare")]
    assert not np.array_equal(*strips)
    generator = torch.Generator().manual_seed(derive_seed(global_seed(), Stream.DENOISING))
    (last,) = to_uint8(visible(module.sample(num=1, generator=generator, guidance=TRIPLE)))
    assert np.array_equal(strips[0][2:30, 62:90, 0], last[0].numpy())


def test_fid_has_guidance_that_is_not_the_models_in_its_name(fit):
    of = {"feature": Patches(), "num_samples": 8}
    _, logged = fit(
        FIDCallback(**of),
        FIDCallback(**of, guidance=TRIPLE),
        FIDCallback(**of, guidance=None),
        FIDCallback(**{**of, "num_samples": 9}, guidance=partial(TRIPLE, weight=1.0)),
        FIDCallback(**{**of, "num_samples": 9}, guidance=None),
        guidance=partial(ClassifierFreeGuidance, weight=2.0),
    )
    found = {name: value.item() for name, value in logged.items() if name.startswith("fid/")}
    assert list(found) == [
        "fid/patches@8",  # by the model's own, as by its own sampler
        "fid/patches,ClassifierFreeGuidance(weight=3)@8",
        "fid/patches,unguided@8",
        "fid/patches,ClassifierFreeGuidance(weight=1)@9",
        "fid/patches,unguided@9",
    ]
    values = list(found.values())
    assert all(map(math.isfinite, values))
    assert len(set(values[:3])) == 3
    assert values[3] == values[4]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (SampleGrid(guidance=partial(TRIPLE, weight=math.nan)), "guidance.weight=nan: must be a finite number"),
        (SampleGrid(guidance_weights=[1.0, math.inf]), "guidance.weight=inf: must be a finite number"),
        (DenoisingProcess(guidance=partial(TRIPLE, interval=[3, 1])), "guidance.interval"),
    ],
)
def test_bad_guidance_is_told_before_the_first_step(make, make_data, callback, message):
    with pytest.raises(ValueError, match=message):
        callback.check(make(), make_data())


def test_no_weights():
    with pytest.raises(ValueError, match=r"guidance_weights=\[\]: give at least one"):
        SampleGrid(guidance_weights=[])
