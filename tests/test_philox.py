"""Random numbers by counters: the published ones, a normal distribution, and each row by itself alone."""

import math

import pytest
import torch

from diffusion_lightning.philox import normal_rows, philox

ONES = 2**32 - 1

# the known answers of Random123 (Salmon et al. 2011), kat_vectors, philox4x32 10
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_published_words(counter, key, words):
    found = philox([torch.tensor([number]) for number in counter], key[0] | key[1] << 32)
    assert tuple(int(word) for word in found) == words


def test_a_row_depends_on_the_key_and_its_place_alone():
    whole = normal_rows(7, torch.arange(12), (3, 5))
    assert whole.shape == (12, 3, 5)
    places = torch.tensor([11, 0, 4])
    assert torch.equal(normal_rows(7, places, (3, 5)), whole[places])
    assert len({tuple(row.flatten().tolist()) for key in (7, 8) for row in normal_rows(key, places, (3, 5))}) == 6
    # a longer row begins as a shorter one
    assert torch.equal(normal_rows(7, places, (10,)), whole[places].flatten(1)[:, :10])


def test_the_values_never_change():
    # an interrupted run that is resumed with another version must draw the same noise
    row = normal_rows(123456789, torch.tensor([3]), (5,))
    expected = [[2.1984499, -0.7660434, -1.5366455, 0.6814364, -2.5082278]]
    torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_they_are_standard_normal():
    drawn = normal_rows(42, torch.arange(1000), (1000,)).double().flatten()
    # within five standard errors of a million draws
    n = len(drawn)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - moment) < 5 * math.sqrt(variance / n)
    # Kolmogorov and Smirnov's distance, whose square root of n times it is above 2 once in a thousand
    level = 0.5 * (1 + torch.erf(drawn.sort().values / math.sqrt(2)))
    assert (level - (torch.arange(n) + 0.5) / n).abs().max() < 2 / math.sqrt(n)
    # neighbours in a row, in a block of four words and across it, and rows beside each other do not know of each other
    square = drawn.reshape(1000, 1000)
    for one, other in (*((square[:, :-lag], square[:, lag:]) for lag in (1, 2, 3, 4)), (square[:-1], square[1:])):
        assert abs((one * other).mean()) < 5 / math.sqrt(one.numel())


@pytest.mark.parametrize("extremes", [(0, 0, ONES, ONES), (ONES, 0, 0, ONES)])
def test_the_smallest_and_the_largest_words_are_finite_draws(extremes, monkeypatch):
    monkeypatch.setattr("diffusion_lightning.philox.philox", lambda *_: [torch.tensor([[word]]) for word in extremes])
    drawn = normal_rows(1, torch.arange(1), (4,))
    assert drawn.isfinite().all()
    assert drawn.abs().max() == pytest.approx(math.sqrt(2 * 32 * math.log(2)))


def test_the_default_type_is_obeyed():
    torch.set_default_dtype(torch.float64)
    try:
        drawn = normal_rows(7, torch.arange(2), (3,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn.float(), normal_rows(7, torch.arange(2), (3,)))
