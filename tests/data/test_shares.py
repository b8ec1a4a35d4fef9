import pytest
import torch

from diffusion_lightning.data.shares import in_shares
from diffusion_lightning.metrics.evaluation import frechet_distance
from diffusion_lightning.metrics.features import DigitFeatures, extract_features
from diffusion_lightning.metrics.reference import Moments


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([900, 900, 900], 7, [3, 2, 2]),  # of equal remainders the lower classes
        ([50, 10, 1], 61, [50, 10, 1]),
        ([50, 10, 1], 10, [8, 2, 0]),  # quotas 8.20, 1.64, 0.16
        ([6, 6, 2], 10, [4, 4, 2]),  # 4.29, 4.29, 1.43: the largest remainder is the smallest class's
        ([0, 5, 0], 3, [0, 3, 0]),
        ([7], 4, [4]),
        ([10**12, 1], 1000, [1000, 0]),
    ],
)
def test_each_class_has_its_share_by_largest_remainder(counts, total, expected):
    labels = in_shares(counts, total)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels, minlength=len(counts)).tolist() == expected


def test_equal_classes_come_in_turn():
    for total in (1, 9, 10, 64, 1003):
        assert torch.equal(in_shares([900] * 10, total), torch.arange(total) % 10)


def test_the_classes_are_spread_over_the_samples():
    """Any beginning is within one sample for each class of the shares."""
    counts = torch.tensor([50.0, 25.0, 20.0, 5.0])
    labels = in_shares([50, 25, 20, 5], 200)
    for end in range(1, 201):
        found = torch.bincount(labels[:end], minlength=4)
        assert (found - end * counts / 100).abs().max() <= 1


def test_no_examples_have_no_shares():
    with pytest.raises(ValueError, match=r"counts=\[0, 0\]: must have an example of some class"):
        in_shares([0, 0], 3)


@pytest.fixture(scope="module")
def halves(digits):
    """Features of 500 digits of each class to be the data, and of 500 others to be a perfect model's samples."""
    images, labels = (torch.cat([getattr(part, name) for part in digits]) for name in ("images", "labels"))
    by_class = [(labels == digit).nonzero().flatten() for digit in range(10)]
    parts = [torch.cat([rows[first : first + 500] for rows in by_class]) for first in (0, 500)]
    return [extract_features(DigitFeatures(), images[part].split(500)).reshape(10, 500, -1) for part in parts]


@pytest.mark.parametrize("largest", [5, 50])
def test_a_perfect_model_of_uneven_classes_is_perfect_in_their_shares_alone(halves, largest):
    data, model = halves
    counts = [round(500 * largest ** (-digit / 9)) for digit in range(10)]
    assert counts[0] == largest * counts[-1]
    moments = Moments.of(torch.cat([features[:count] for features, count in zip(data, counts, strict=True)]))

    def fid(labels):
        return frechet_distance(torch.cat([model[digit, : (labels == digit).sum()] for digit in range(10)]), moments)

    in_turn, shared = fid(torch.arange(1000) % 10), fid(in_shares(counts, 1000))
    print(f"largest class {largest} times the smallest: {in_turn:.2f} in turn, {shared:.2f} in shares")
    assert in_turn > 4 * shared
