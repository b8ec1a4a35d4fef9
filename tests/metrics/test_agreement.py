"""What a classifier reads in samples: shares, errors and order by hand, of real digits, in parts, and as a picture."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning.metrics import agreement
from diffusion_lightning.metrics.agreement import Agreement, least_sure, tally, tally_held_out, worst_picture
from diffusion_lightning.metrics.features import DigitFeatures

# of five images, the probabilities of three classes
TABLE = [[0.95, 0.03, 0.02], [0.5, 0.3, 0.2], [0.02, 0.91, 0.07], [0.1, 0.01, 0.89], [0.04, 0.03, 0.93]]
LABELS = torch.tensor([0, 0, 0, 2, 1])
"""Of which the first, second and fourth are read; all but the second and the fourth are legible."""
CPU = torch.device("cpu")


@pytest.fixture
def logits() -> Tensor:
    """With a shift of each image's own, which changes no probability."""
    return torch.tensor(TABLE).log() + torch.tensor([3.0, -40.0, 0.0, 100.0, 7.0])[:, None]


def test_shares_and_errors_by_hand(logits):
    found = Agreement.of(tally(logits, LABELS), asked=True)
    assert found == Agreement(num=5, legible=3, agreeing=3)
    assert found.shares == {"agreement": 0.6, "legible": 0.6}
    error = pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert found.errors == {"agreement_error": error, "legible_error": error}
    assert Agreement(1000, 913, 953).errors["agreement_error"] == pytest.approx(0.0066927, abs=1e-6)


def test_of_images_that_nothing_was_asked_of_legibility_alone(logits):
    assert tally(logits).tolist() == [5, 3, 0]
    assert Agreement.of(tally(logits), asked=False).shares == {"legible": 0.6}
    assert Agreement.of(tally(logits), asked=False).errors.keys() == {"legible_error"}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_add_up(logits, size):
    parts = zip(logits.split(size), LABELS.split(size), strict=True)
    assert sum(tally(*part) for part in parts).tolist() == tally(logits, LABELS).tolist()
    assert tally(logits[:0], LABELS[:0]).tolist() == [0, 0, 0]


def test_the_least_sure_come_first(logits):
    order, sure = least_sure(logits, LABELS)
    assert order.tolist() == [2, 4, 1, 3, 0]
    assert sure.tolist() == pytest.approx([0.02, 0.03, 0.5, 0.89, 0.95], abs=1e-6)
    assert least_sure(logits, LABELS, most=2)[0].tolist() == [2, 4]
    order, sure = least_sure(logits)  # whatever it is: the lowest of the largest
    assert order.tolist() == [1, 3, 2, 4, 0]
    assert sure.tolist() == pytest.approx([0.5, 0.89, 0.91, 0.93, 0.95], abs=1e-6)


class Known(nn.Module):
    """Takes an image's first pixel for its class, and its second for how sure it is."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2].float()

    def logits(self, features: Tensor) -> Tensor:
        return nn.functional.one_hot(features[:, 0].long(), 10) * features[:, 1:]


class Few:
    """Images of the classes 0 to 9 in turn, every fourth of them labelled by the next one; half of them legible."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(indices)
        images = torch.stack((index % 10, 1 + 19 * (index < 20)), 1).to(torch.uint8).view(-1, 1, 1, 2)
        return images, (index + (index % 4 == 0)) % 10


@pytest.mark.parametrize("world", [1, 2, 3, 64])
def test_the_processes_share_the_held_out_images(world, monkeypatch):
    monkeypatch.setattr(agreement, "BATCH", 7)
    parts = [tally_held_out(Known(), Few(), 0, CPU, rank, world) for rank in range(world)]
    assert sum(parts).tolist() == [40, 20, 30]
    assert [int(part[0]) for part in parts] == [len(range(rank, 40, world)) for rank in range(world)]


def test_so_many_of_the_held_out_images_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(agreement, "HELD_OUT", 10)
    found = [tally_held_out(Known(), Few(), seed, CPU).tolist() for seed in (0, 0, 1, 2)]
    assert {num for num, *_ in found} == {10}
    assert found[0] == found[1]
    assert len({tuple(each) for each in found}) > 1


def test_real_digits_are_read_and_those_of_wrong_labels_are_not(digits):
    network, (images, labels) = DigitFeatures(), digits[1][list(range(1000))]
    logits = network.logits(network(images))
    right, wrong = (Agreement.of(tally(logits, asked), asked=True) for asked in (labels, (labels + 1) % 10))
    assert right.shares["agreement"] > 0.98
    assert wrong.shares["agreement"] < 0.01
    assert right.legible == wrong.legible > 970
    assert Agreement.of(tally_held_out(network, digits[1], 3, CPU), asked=True) == right  # all of them, in any order


def shown(monkeypatch: pytest.MonkeyPatch, *args: object) -> SimpleNamespace:
    """What a picture has in it: its images, its texts, and the picture itself."""
    figures = []
    original = agreement.figure_picture
    monkeypatch.setattr(agreement, "figure_picture", lambda figure: figures.append(figure) or original(figure))
    picture = worst_picture(*args)
    (panel,) = figures[0].axes
    images = [torch.from_numpy(image.get_array()) for image in panel.images]
    return SimpleNamespace(picture=picture, images=images, texts=[text.get_text() for text in panel.texts])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_the_worst_and_says_what_they_were_to_be(logits, monkeypatch, channels):
    images = (torch.arange(5) * 50).to(torch.uint8)[:, None, None, None].expand(-1, channels, 6, 4)
    found = shown(monkeypatch, images, logits, LABELS, ("cat", "dog", "owl"))
    assert [int(image.max()) for image in found.images] == [100, 200, 50, 150, 0]
    assert found.texts[1:] == [
        *("cat → dog   0.02", "dog → owl   0.03", "cat → cat   0.5", "owl → owl   0.89", "cat → cat   0.95")
    ]
    assert "probability of what was asked" in found.texts[0]
    assert found.picture.dtype == torch.uint8
    assert found.picture.shape[0] == 3


def test_the_picture_of_samples_that_nothing_was_asked_of(logits, monkeypatch):
    found = shown(monkeypatch, torch.zeros(5, 1, 4, 4, dtype=torch.uint8), logits, None, ("cat", "dog", "owl"))
    assert found.texts == [
        "read, and its probability",
        *("cat   0.5", "owl   0.89", "dog   0.91", "owl   0.93", "cat   0.95"),
    ]


def test_the_picture_has_64_at_most(monkeypatch):
    images = torch.zeros(70, 1, 4, 4, dtype=torch.uint8)
    found = shown(monkeypatch, images, torch.randn(70, 3), None, ("cat", "dog", "owl"))
    assert len(found.images) == 64
    assert len(found.texts) == 65
