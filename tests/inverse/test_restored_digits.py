"""Digits whose lower half is filled in, by a model that is exact: a mixture around real digits."""

from functools import partial

import torch

from diffusion_lightning import (
    MMPS,
    DPMSolverPlusPlus,
    EmbeddedMNIST,
    GaussianMixtureDenoiser,
    Inpainting,
    KarrasSDE,
    restore,
)
from diffusion_lightning.data.tensor_images import normalize
from diffusion_lightning.images import to_uint8
from diffusion_lightning.inverse.masks import missing_pixels
from diffusion_lightning.metrics.features import build_features
from diffusion_lightning.metrics.restoration import psnr
from diffusion_lightning.randomness import draw_some

OF_EACH, ASKED, DRAWS = 20, 10, 3


def some(mask: torch.Tensor, count: int) -> torch.Tensor:
    """So many of the places where it is true, drawn."""
    places = mask.nonzero()[:, 0]
    return places[draw_some(count, len(places), seed=0)]


def test_answers_show_the_truths_digit_more_often_than_any_guess() -> None:
    """100 held-out digits, of each the upper half: 200 digits of training are the model's data."""
    training, held_out = EmbeddedMNIST().load_images()
    chosen = torch.cat([some(training.labels == digit, OF_EACH) for digit in range(10)])
    means = normalize(training.images[chosen])
    model = GaussianMixtureDenoiser(means, torch.full((len(means),), 0.25), torch.ones(len(means)), KarrasSDE())
    asked = torch.cat([some(held_out.labels == digit, ASKED) for digit in range(10)])
    truth, labels = normalize(held_out.images[asked]), held_out.labels[asked]

    operator = Inpainting(~missing_pixels("bottom", (28, 28)))
    generator = torch.Generator().manual_seed(0)
    answers = restore(
        model,
        operator(truth),
        operator,
        partial(MMPS, iterations=1),
        DRAWS,
        DPMSolverPlusPlus(8),
        generator=generator,
        batch_size=100,
    )
    torch.testing.assert_close(answers[..., :14, :], truth[..., :14, :].expand(DRAWS, *truth[..., :14, :].shape))
    judge = build_features("digits")[1]
    classes = judge.logits(judge(to_uint8(answers.flatten(0, 1)))).argmax(1).unflatten(0, (DRAWS, -1))
    agreement = (classes == labels).double().mean().item()
    assert agreement > 0.3  # any constant guess is right for 10 of 100
    assert psnr(answers.mean(0), truth).mean() > psnr(means.mean(0), truth).mean() + 0.5
