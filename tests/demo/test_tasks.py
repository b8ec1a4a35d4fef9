"""What the page can be asked for, without a page: an exact model of bright and dark pictures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_lightning import (
    MLP,
    SDE,
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    DPMSolverPlusPlus,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    RectifiedFlow,
)
from diffusion_lightning.demo.tasks import Stopped, Studio, from_levels, painted, read_picture
from diffusion_lightning.training.trained import TrainedModel

SHAPE = (1, 4, 4)


class Bright(nn.Module):
    """Draws grey pictures brighter with each class; counts its calls, and may press stop at one of them."""

    num_classes, null_class = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int] | None] = []
        self.stop_at: tuple[int, Callable[[], None]] | None = None

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        self.told.append(None if labels is None else labels.tolist())
        if self.stop_at is not None and len(self.told) == self.stop_at[0]:
            self.stop_at[1]()
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


def test_what_is_stopped_stays_so_though_the_next_has_begun() -> None:
    desk, _ = studio()
    first = desk.draw(2, None, 0, 1.0, 9, "DPM-Solver++")
    next(first)
    next(first)
    desk.stop()
    assert len(list(desk.draw(2, None, 0, 1.0, 3, "DPM-Solver++"))) == 4
    with pytest.raises(Stopped):
        next(first)


def test_nobody_stops_what_is_another_ones() -> None:
    desk, _ = studio()
    drawing = desk.draw(2, None, 0, 1.0, 9, "DPM-Solver++")
    desk.owner = "first"
    next(drawing)
    desk.stop("second")
    next(drawing)
    desk.stop("first")
    with pytest.raises(Stopped):
        next(drawing)


def test_pictures_of_its_own_are_of_each_class() -> None:
    desk, network = studio()
    for seed in range(3):
        assert desk.one(seed).shape == SHAPE
    assert network.told == [[0]] * 20 + [[1]] * 20 + [[0]] * 20


def test_what_a_model_must_be_told() -> None:
    desk, _ = studio()
    assert not desk.needs_a_class
    assert Studio(TrainedModel(desk.model.denoiser, DPMSolverPlusPlus(3), SHAPE)).needs_a_class
    needy = NetworkDenoiser(MLP(2, condition_dim=3), KarrasSDE(), KarrasPreconditioning())
    with pytest.raises(ValueError, match="the model must be told vector, which the page cannot"):
        Studio(TrainedModel(needy, DPMSolverPlusPlus(3), SHAPE))
    Studio(TrainedModel(needy, DPMSolverPlusPlus(3), SHAPE, condition_dropout=0.1))


@pytest.mark.parametrize(
    ("sde", "samplers"),
    [(VPSDE(), 3), (VESDE(), 3), (RectifiedFlow(), 3), (DiscreteVPSDE(100), 3)],
    ids=lambda value: type(value).__name__,
)
def test_every_process_has_its_samplers(sde: SDE, samplers: int) -> None:
    desk = Studio(TrainedModel(NetworkDenoiser(Bright(), sde, NoisePrediction()), DPMSolverPlusPlus(3), SHAPE))
    assert len(desk.samplers) == samplers
    for sampler in desk.samplers:
        *_, (share, _) = desk.draw(2, None, 0, 1.0, 3, sampler)
        assert share == 1
    for level in desk.noise_levels():
        list(desk.sketch(torch.zeros(SHAPE), level, 0, 1))


def test_a_sketch_with_little_noise_stays_itself() -> None:
    desk, _ = studio()
    *_, (_, shown) = desk.sketch(torch.full(SHAPE, 0.5), desk.noise_levels()[0], 0, 1)
    assert abs(shown.astype(float).mean() - 191) < 15


def test_the_ends_of_the_way_are_the_pictures() -> None:
    desk, network = studio()
    desk.between(torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5), 3, (0, 1))
    assert {labels[0] for labels in network.told if labels} == {0, 1}
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
    assert torch.equal(read_picture(str(tmp_path / "wide.png"), (3, 2, 4))[0], torch.tensor([[-1.0, 1, 1, -1]] * 2))
    assert from_levels(np.full((8, 8, 3), 255, dtype=np.uint8), SHAPE).mean() == 1
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="This file is no picture that can be read"):
        read_picture(str(tmp_path / "broken.png"), SHAPE)


def test_odd_pictures_are_pictures(tmp_path) -> None:
    path = tmp_path / "picture.png"
    ink = Image.new("LA", (8, 8))
    ink.paste((0, 255), (0, 0, 4, 8))  # black, and transparent on the right, which is black as well underneath
    ink.save(path)
    assert torch.equal(read_picture(str(path), SHAPE)[0, 0], torch.tensor([-1.0, -1, 1, 1]))
    Image.fromarray(np.full((8, 8), 255 << 8, dtype=np.uint16)).save(path)
    assert torch.equal(read_picture(str(path), SHAPE), torch.ones(SHAPE))
    Image.new("L", (1, 100), 255).save(path)
    assert torch.equal(read_picture(str(path), (3, 4, 8)), torch.ones(3, 4, 8))
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    assert torch.equal(read_picture(str(tmp_path / "moving.gif"), (3, 1, 1)).flatten(), torch.tensor([1.0, -1, -1]))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera lay on its side: the left is up
    half = Image.new("L", (8, 8))
    half.paste(255, (0, 0, 4, 8))
    half.save(path, exif=rotated)
    assert torch.equal(read_picture(str(path), SHAPE)[0, :, 0], torch.tensor([1.0, 1, -1, -1]))


def test_a_picture_larger_than_any_cameras_is_refused(tmp_path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="at most 50 megapixels"):
        read_picture(str(tmp_path / "large.png"), SHAPE)


def test_a_fifth_of_a_pixel_is_painted() -> None:
    alpha = np.zeros((40, 40), dtype=np.uint8)
    alpha[:10, :3] = 255  # three tenths of the first pixel
    alpha[:10, 39] = 255  # one tenth of the last one in the row
    assert painted(alpha, SHAPE).nonzero().tolist() == [[0, 0]]
