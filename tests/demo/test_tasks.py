"""What the page can be asked for, without a page: an exact model of bright and dark pictures."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_lightning import DPMSolverPlusPlus, KarrasPreconditioning, KarrasSDE, NetworkDenoiser
from diffusion_lightning.demo.tasks import Stopped, Studio, from_levels, painted, read_picture
from diffusion_lightning.training.trained import TrainedModel

SHAPE = (1, 4, 4)


class Bright(nn.Module):
    """Draws grey pictures brighter with each class; counts its calls, and may press stop at one of them."""

    num_classes, null_class = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int] | None] = []
        self.stop_at: tuple[int, threading.Event] | None = None

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        self.told.append(None if labels is None else labels.tolist())
        if self.stop_at is not None and len(self.told) == self.stop_at[0]:
            self.stop_at[1].set()
        return 0.1 * x


def studio() -> tuple[Studio, Bright]:
    network = Bright()
    denoiser = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning())
    model = TrainedModel(denoiser, DPMSolverPlusPlus(3), SHAPE, condition_dropout=0.1)
    return Studio(model), network


def test_pictures_come_out_of_the_noise() -> None:
    desk, network = studio()
    shown = list(desk.draw(4, None, 0, 1.0, 5, "DPM-Solver++"))
    assert [share for share, _ in shown] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(picture.dtype == np.uint8 and picture.shape == shown[0][1].shape for _, picture in shown)
    assert min(shown[0][1].shape[:2]) >= 480
    assert network.told == [[0, 1, 0, 1]] * 5
    again = list(desk.draw(4, None, 0, 1.0, 5, "DPM-Solver++"))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(shown, again, strict=True))


@pytest.mark.parametrize("sampler", ["DPM-Solver++", "Heun", "DDIM"])
def test_a_class_and_guidance_reach_the_model(sampler: str) -> None:
    desk, network = studio()
    list(desk.draw(2, 1, 0, 3.0, 4, sampler))
    assert all(labels in ([1, 1], None, [2, 2, 1, 1], [1, 1, 2, 2]) for labels in network.told)
    assert any(labels != [1, 1] for labels in network.told)


def test_the_missing_part_is_filled_in_and_the_rest_stays() -> None:
    desk, _ = studio()
    picture = torch.full(SHAPE, 0.5)
    missing = torch.zeros(4, 4, dtype=torch.bool)
    missing[2:] = True
    for method in ("MMPS", "RePaint"):
        *_, (share, shown) = desk.fill_in(picture, missing, method, 0, 4)
        assert share == 1
        scale = shown.shape[1] // 26  # four pictures of four pixels, two pixels apart
        tile = shown[2 * scale : 6 * scale : scale, 2 * scale : 6 * scale : scale, 0]
        assert (tile[:2] == 191).all()
        assert (tile[2:] != 191).any()


def test_stop_ends_the_work_at_its_next_evaluation() -> None:
    desk, network = studio()
    network.stop_at = (3, desk.stop)
    with pytest.raises(Stopped):
        list(desk.draw(2, None, 0, 1.0, 50, "Heun"))
    assert len(network.told) == 3
    network.stop_at = None
    assert len(list(desk.draw(2, None, 0, 1.0, 3, "DPM-Solver++"))) == 4  # and the next is not stopped
    network.stop_at = (len(network.told) + 2, desk.stop)
    with pytest.raises(Stopped):
        desk.between(torch.zeros(SHAPE), torch.ones(SHAPE), 3)


def test_a_sketch_with_little_noise_stays_itself() -> None:
    desk, _ = studio()
    *_, (_, shown) = desk.sketch(torch.full(SHAPE, 0.5), desk.noise_levels()[0], 0, 1)
    assert abs(shown.astype(float).mean() - 191) < 15


def test_the_ends_of_the_way_are_the_pictures() -> None:
    desk, _ = studio()
    frames = desk.between(torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5), 4)
    assert len(frames) == 4
    assert abs(frames[0].astype(float).mean() - 64) < 3
    assert abs(frames[-1].astype(float).mean() - 191) < 3


def test_any_picture_becomes_one_of_the_models(tmp_path) -> None:
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = 255  # the middle
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert torch.equal(read_picture(str(tmp_path / "wide.png"), SHAPE), torch.ones(SHAPE))
    assert read_picture(str(tmp_path / "wide.png"), (3, 6, 6)).shape == (3, 6, 6)
    assert from_levels(np.full((8, 8, 3), 255, dtype=np.uint8), SHAPE).mean() == 1
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="This file is no picture that can be read"):
        read_picture(str(tmp_path / "broken.png"), SHAPE)


def test_a_fifth_of_a_pixel_is_painted() -> None:
    alpha = np.zeros((40, 40), dtype=np.uint8)
    alpha[:10, :3] = 255  # three tenths of the first pixel
    alpha[:10, 39] = 255  # one tenth of the last one in the row
    assert painted(alpha, SHAPE).nonzero().tolist() == [[0, 0]]
