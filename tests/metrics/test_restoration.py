"""Scores of restored pictures, where their values are known."""

import math

import pytest
import torch

from diffusion_lightning.inverse import Inpainting, Linear
from diffusion_lightning.metrics.restoration import (
    STATISTICS,
    agreeing,
    calibration_error,
    calibration_picture,
    psnr,
    ranks,
    ssim,
)

MEASURED = Linear(torch.tensor([[1.0, 0.3], [0.2, -1.0], [0.5, 0.5]]))


def gaussian_answers(num: int, pictures: int, width: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answers, truths and measurements where x0 ~ N(0, I) in two dimensions and y = A x0 + 0.5 z; answers are draws of
    the exact posterior if ``width`` is 1, and so many times as far from its mean else."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(pictures, 2, generator=generator)
    y = MEASURED.measure(truth, 0.5, generator)
    covariance = torch.linalg.inv(torch.eye(2) + MEASURED.matrix.T @ MEASURED.matrix / 0.25)
    mean = y @ MEASURED.matrix / 0.25 @ covariance
    z = torch.randn(num, pictures, 2, generator=generator) @ torch.linalg.cholesky(covariance).T
    return mean + width * z, truth, y


def test_psnr_and_ssim() -> None:
    truth = torch.rand(2, 1, 16, 16) * 2 - 1
    worse = torch.stack([truth[0] + 0.2, truth[1] - 0.02])
    torch.testing.assert_close(psnr(worse, truth), torch.tensor([20 * math.log10(2 / 0.2), 40.0]))
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1])
    assert ssim(worse, truth)[0] < ssim(worse, truth)[1] < 1


def test_exact_answers_have_uniform_ranks_and_others_have_not() -> None:
    """2,000 truths among 7 answers each: the error of exact ones is below 0.02, of those half as wide 0.1 and more."""
    errors = {}
    for width in (0.5, 1.0, 2.0):
        answers, truth, _ = gaussian_answers(7, 2000, width)
        places = ranks(answers, truth)
        assert places.shape == (2000, STATISTICS)
        errors[width] = calibration_error(places, 7)
        if width != 1:
            shares = torch.bincount(places.flatten(), minlength=8)
            ends, middle = shares[[0, 7]].sum(), shares[[3, 4]].sum()
            assert (ends > middle) == (width < 1)
    assert errors[1.0] < 0.02 < 0.08 < min(errors[0.5], errors[2.0])


def test_ties_are_broken_by_lot() -> None:
    places = ranks(torch.zeros(3, 500, 4), torch.zeros(500, 4))
    assert torch.bincount(places.flatten(), minlength=4).min() > 0


def test_exact_answers_agree_with_the_measurement_and_those_at_its_mean_do_not() -> None:
    """Of exact draws 99 % lie in the interval; what fits y too well, and what does not fit, lie outside."""
    answers, _, y = gaussian_answers(1, 5000, 1.0)
    assert agreeing(answers[0], y, MEASURED, 0.5).double().mean().item() == pytest.approx(0.99, abs=0.006)
    assert not agreeing(answers[0] + 3, y, MEASURED, 0.5).any()
    identity = Inpainting(torch.ones(40))
    x = torch.randn(200, 40)
    assert not agreeing(x, x, identity, 0.5).any()
    noisy = x + 0.2 * torch.randn(200, 40, generator=torch.Generator().manual_seed(1))
    assert agreeing(x, noisy, identity, 0.2).double().mean() > 0.95


def test_without_noise_half_a_step_of_eight_bits_is_agreement() -> None:
    half = Inpainting(torch.tensor([True, False]))
    y = torch.tensor([[0.5, 9.0], [0.5, 9.0]])
    x = torch.tensor([[0.5 + 0.9 / 255, 3.0], [0.5 + 1.1 / 255, 3.0]])
    assert agreeing(x, y, half, 0.0).tolist() == [True, False]


def test_the_histogram_is_a_picture() -> None:
    answers, truth, _ = gaussian_answers(7, 50, 1.0)
    picture = calibration_picture(ranks(answers, truth), 7)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
