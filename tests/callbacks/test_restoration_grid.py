"""The grid "known | answers | mean | deviation | true" of held-out pictures, in a real training."""

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from diffusion_lightning import DPMSolverPlusPlus, RestorationGrid, RunLogger
from diffusion_lightning.callbacks.restoration_grid import rows_of
from diffusion_lightning.images import to_uint8


def tile(picture, row, column, side=28):
    top, left = 2 + row * (side + 2), 2 + column * (side + 2)
    return picture[:, top : top + side, left : left + side]


def pixels(path):
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)


@pytest.mark.parametrize("method", ["MMPS", "RePaint"])
def test_what_is_known_is_kept_and_the_rest_is_drawn(make_module, make_trainer, make_data, tmp_path, method):
    seed_everything(0, verbose=False)
    sampler = DPMSolverPlusPlus(2) if method == "MMPS" else None
    callback = RestorationGrid("bottom", method, sampler, num_examples=3, draws=2, batch_size=4)
    data = make_data()
    make_trainer(callbacks=[callback], logger=RunLogger(tmp_path, "run"), max_epochs=2).fit(
        make_module(), datamodule=data
    )
    first, last = sorted(tmp_path.rglob("restorations/epoch=*.png"))
    picture = pixels(last)
    x = to_uint8(data.examples(data.first_held_out(3).tolist())[0])
    assert picture.shape == (3, 2 + 3 * 30, 2 + 6 * 30)
    for row in range(3):
        assert torch.equal(tile(picture, row, 5)[0], x[row, 0])
        assert (tile(picture, row, 0)[:, 14:] == 128).all()
        for column in (0, 1, 2, 3):
            assert torch.equal(tile(picture, row, column)[0, :14], x[row, 0, :14])
        assert (tile(picture, row, 4)[:, :14] == 0).all()  # no doubt about what is known
        assert not torch.equal(tile(picture, row, 1), tile(picture, row, 2))
    assert first.read_bytes() != last.read_bytes()


def test_the_deviation_is_white_where_half_is_black_and_half_white():
    answers = torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)])
    picture = rows_of(torch.zeros(1, 1, 4, 4), answers, torch.zeros(1, 1, 4, 4))
    assert (tile(picture, 0, 3, 4) == 128).all()  # their mean
    assert (tile(picture, 0, 4, 4) == 255).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask": "middle"}, "mask='middle': must be left, right"),
        ({"method": "Magic"}, "method='Magic': must be one of MMPS"),
        ({"method": "RePaint", "sampler": DPMSolverPlusPlus(2)}, "sampler: RePaint draws by itself"),
        ({"noise_std": -1.0}, "noise_std=-1.0: must be zero"),
        ({"draws": 0}, "draws"),
    ],
)
def test_bad_input_is_told_in_a_line(given, said):
    with pytest.raises(ValueError, match=said):
        RestorationGrid(**given)


def test_its_cost_is_estimated():
    """MMPS asks the network five times for each step of its sampler: once forward, four products."""
    assert RestorationGrid(method="MMPS").per_evaluation == 5
    assert RestorationGrid(num_examples=3, draws=4).num_drawn == 12
