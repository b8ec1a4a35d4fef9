"""Pictures that a command is given: what they become in [-1, 1], what is said of them, and a line for each mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.usage import UsageError

LEVELS = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
VALUES = torch.tensor([[-1.0, -0.6, -0.2], [0.2, 0.6, 1.0]])


def write(path: Path, levels: np.ndarray = LEVELS, mode: str = "L", **settings: object) -> Path:
    Image.fromarray(levels).convert(mode).save(path, **settings)
    return path


@pytest.mark.parametrize(
    ("mode", "channels", "word"),
    [
        ("L", 1, ""),
        ("RGB", 3, ""),
        ("LA", 1, ""),
        ("RGB", 1, "input: 1 of 1 pictures turned from colour to grey\n"),
        ("L", 3, "input: 1 of 1 pictures turned from grey to colour\n"),
    ],
)
def test_levels_become_values_of_the_channels_that_are_wanted(tmp_path, capsys, mode, channels, word) -> None:
    (picture,) = read_pictures(write(tmp_path / "a.png", mode=mode), channels, "input").values()
    torch.testing.assert_close(picture, VALUES.expand(channels, 2, 3))
    assert capsys.readouterr().err == word


def test_of_a_folder_all_pictures_by_their_names(tmp_path) -> None:
    for name in ("b.png", "a.bmp"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert list(read_pictures(tmp_path, 1, "input")) == ["a", "b"]


def test_what_the_camera_turned_is_turned_back(tmp_path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the top is on the right side: to be seen, it is turned clockwise
    (picture,) = read_pictures(write(tmp_path / "a.png", exif=turned), 1, "input").values()
    torch.testing.assert_close(picture[0], VALUES.rot90(-1))


def test_each_mistake_is_a_line(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    whole = write(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.png", "a.bmp"):
        write(twice / name)
    for path, said in {
        tmp_path / "nowhere": "nowhere': there is no such file or folder",
        tmp_path / "empty": "empty': holds no pictures: must hold some .png",
        tmp_path / "text.png": "text.png': is no picture that can be read (cannot identify image file",
        tmp_path / "cut.png": "cut.png': is no picture that can be read (",
        tmp_path / "deep.png": "deep.png': is no picture that can be read (pixels of mode I;16 are not 8-bit)",
        twice: "twice': two pictures are named a: rename one",
    }.items():
        with pytest.raises(UsageError) as error:
            read_pictures(path, 1, "input")
        assert str(error.value).startswith("input=")
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_another_size_is_named_as_width_and_height() -> None:
    check_size({"a": torch.zeros(1, 2, 3)}, (2, 3), "input", "as the model's")
    with pytest.raises(UsageError, match=r"input: a has 3 × 2 pixels: must have 2 × 3, as the model's"):
        check_size({"a": torch.zeros(1, 2, 3)}, (3, 2), "input", "as the model's")
