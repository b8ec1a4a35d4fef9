import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.images import image_grid, to_uint8, write_png


def test_the_range_maps_to_all_levels():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.zeros(2, 1, 3, 3, dtype=torch.bfloat16)).dtype == torch.uint8


@pytest.mark.parametrize(("number", "across", "down"), [(2, 2, 1), (4, 2, 2), (5, 3, 2), (64, 8, 8), (65, 9, 8)])
def test_the_grid_is_as_square_as_can_be(number, across, down):
    grid = image_grid(torch.zeros(number, 1, 5, 7))
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, down * 7 + 2, across * 9 + 2)


def test_the_grid_shows_the_images_in_order():
    images = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    grid = image_grid(images)
    assert [grid[:, r, c].tolist() for r, c in ((3, 3), (3, 9), (9, 3))] == [[0] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_png(tmp_path, channels):
    picture = torch.randint(256, (channels, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(picture, tmp_path / "new" / "folder" / "a.png")
    with Image.open(tmp_path / "new" / "folder" / "a.png") as file:
        pixels = np.asarray(file)
    assert np.array_equal(pixels.reshape(6, 5, channels), picture.permute(1, 2, 0).numpy())
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["a.png"]


def test_a_png_that_fails_leaves_the_old_one(tmp_path):
    write_png(torch.zeros(1, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_png(torch.zeros(7, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
