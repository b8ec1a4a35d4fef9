from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.images import caption_of, image_grid, to_uint8, visible, write_gif, write_png


def test_the_range_maps_to_all_levels():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.zeros(2, 1, 3, 3, dtype=torch.bfloat16)).dtype == torch.uint8


def test_an_image_that_is_not_finite_is_a_tile_with_a_cross():
    images = torch.zeros(5, 3, 9, 11)
    images[1, 2, 4, 4] = torch.nan
    images[2, 0, 0, 0] = torch.inf
    images[3] = -torch.inf
    shown = to_uint8(images)
    assert (shown[[0, 4]] == 128).all()
    for tile in shown[1:4]:
        assert set(tile.unique().tolist()) == {64, 255}
        assert torch.equal(tile, tile.flip(-1))
        assert torch.equal(tile, tile.flip(-2))
        assert tile[:, 4, 5].tolist() == tile[:, 0, 0].tolist() == [255] * 3
        assert tile[:, 0, 5].tolist() == tile[:, 4, 0].tolist() == [64] * 3
    assert torch.equal(to_uint8(images[:, None].expand(5, 2, 3, 9, 11))[:, 1], shown)  # frames
    assert torch.equal(image_grid(images)[:, 2:11, 15:26], shown[1])
    assert torch.equal(to_uint8(visible(80 * images[:4]))[1:], shown[1:4])  # on the way out of the noise, too


def test_images_stay_and_noise_looks_like_noise():
    generator = torch.Generator().manual_seed(0)
    black_and_white = torch.randint(2, (3, 28, 28), generator=generator).float() * 2 - 1
    noise = torch.randn(3, 28, 28, generator=generator)
    shown = visible(torch.stack([black_and_white, 80 * noise, noise, 0.3 * noise]))
    assert torch.equal(shown[0], black_and_white)
    assert torch.allclose(shown[1], shown[2], atol=1e-5)
    assert 0.55 < shown[1].std() < 0.62
    assert torch.equal(shown[3], 0.3 * noise)


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


def test_a_file_says_what_its_picture_shows(tmp_path):
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    write_png(picture, tmp_path / "a.png", caption="classes in turn: größer, 猫")
    assert caption_of(tmp_path / "a.png") == "classes in turn: größer, 猫"
    write_png(picture, tmp_path / "b.png")
    assert caption_of(tmp_path / "b.png") == ""
    (tmp_path / "c.png").write_text("no picture")
    assert caption_of(tmp_path / "c.png") == caption_of(tmp_path / "d.png") == ""


def test_a_png_that_fails_leaves_the_old_one(tmp_path):
    write_png(torch.zeros(1, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_png(torch.zeros(7, 4, 4, dtype=torch.uint8), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before


def moving(channels: int, frames: int = 4) -> list[torch.Tensor]:
    """Pictures of noise ``(3, 9, 7)``, grey ones for a single channel."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (frames, channels, 9, 7), dtype=torch.uint8, generator=generator)
    return list(noise.expand(-1, 3, -1, -1))


def shown(path: Path) -> tuple[list[torch.Tensor], list[int]]:
    """The pictures of an animation, and how many milliseconds each is shown."""
    with Image.open(path) as file:
        assert file.info["loop"] == 0  # for ever
        found, times = [], []
        for i in range(file.n_frames):
            file.seek(i)
            found.append(torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1))
            times.append(file.info["duration"])
    return found, times


def test_a_grey_animation_is_exact(tmp_path):
    pictures = moving(1)
    write_gif(pictures, tmp_path / "new" / "a.gif", [0.1, 0.2, 0.05, 2.0])
    found, times = shown(tmp_path / "new" / "a.gif")
    assert len(found) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, pictures, strict=True))
    assert times == [100, 200, 50, 2000]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.gif"]


def test_pictures_that_share_pixels_and_have_all_levels_are_exact(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    other = levels.clone()
    other[:, 4:9, 3:7] = other[:, 4:9, 3:7].flip(1)
    write_gif([levels, other, levels], tmp_path / "a.gif", [0.1, 0.1, 1.0])
    found, _ = shown(tmp_path / "a.gif")
    assert all(torch.equal(a, b) for a, b in zip(found, (levels, other, levels), strict=True))


def test_a_colour_animation_has_its_own_colours_in_each_picture(tmp_path):
    few = moving(3)  # 63 colours each
    write_gif(few, tmp_path / "few.gif", [0.1] * 4)
    assert all(torch.equal(a, b) for a, b in zip(shown(tmp_path / "few.gif")[0], few, strict=True))
    level = torch.linspace(0, 255, 64)
    smooth = torch.stack([level[:, None].expand(64, 64), level[None].expand(64, 64), torch.full((64, 64), 90.0)])
    write_gif([smooth.byte(), 255 - smooth.byte()], tmp_path / "smooth.gif", [0.1, 1.0])
    found, _ = shown(tmp_path / "smooth.gif")
    assert (found[0].float() - smooth.byte().float()).abs().mean() < 6


def test_an_animation_of_one_picture(tmp_path):
    write_gif(moving(1, 1), tmp_path / "a.gif", [2.0])
    with Image.open(tmp_path / "a.gif") as file:
        assert torch.equal(torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1), moving(1, 1)[0])


def test_an_animation_that_fails_leaves_the_old_one(tmp_path):
    write_gif(moving(1), tmp_path / "a.gif", [0.1] * 4)
    before = (tmp_path / "a.gif").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_gif([torch.zeros(7, 4, 4, dtype=torch.uint8), *moving(3)], tmp_path / "a.gif", [0.1] * 5)
    assert (tmp_path / "a.gif").read_bytes() == before
