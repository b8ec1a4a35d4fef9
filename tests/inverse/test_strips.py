"""Answers beside each other, pixel by pixel."""

import torch

from diffusion_lightning.inverse.strips import tiles


def test_given_answers_mean_deviation_truth() -> None:
    white, truth = torch.ones(1, 1, 2), torch.tensor([[[0.5, -0.5]]])
    half = torch.tensor([[[1.0, -1.0]]])
    made = tiles(torch.zeros(1, 1, 2), torch.stack([white, half]), truth)
    assert made.shape == (6, 3, 1, 2)
    # of the first pixel there is no doubt, black; the second is white or black, and its deviation white
    rows = [[0, 0], [1, 1], [1, -1], [1, 0], [-1, 1], [0.5, -0.5]]
    for channel in range(3):
        assert made[:, channel, 0].tolist() == rows
    assert torch.equal(tiles(torch.zeros(1, 1, 2), torch.stack([white, half])), made[:5])


def test_grey_is_shown_beside_colour() -> None:
    assert tiles(torch.zeros(1, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(3, 4, 4)).shape == (6, 3, 4, 4)
