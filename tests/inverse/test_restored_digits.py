"""Digits whose lower half is filled in, by a model that is exact: a mixture around real digits."""

import torch

from diffusion_lightning import (
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

OF_EACH, ASKED = 30, 10


def test_answers_show_the_truths_digit_more_often_than_any_guess() -> None:
    """100 held-out digits, of each the upper half: 300 digits of training are the model's data."""
    training, held_out = EmbeddedMNIST().load_images()
    chosen = torch.cat([(training.labels == digit).nonzero()[:OF_EACH, 0] for digit in range(10)])
    means = normalize(training.images[chosen])
    model = GaussianMixtureDenoiser(means, torch.full((len(means),), 0.35), torch.ones(len(means)), KarrasSDE())
    asked = torch.cat([(held_out.labels == digit).nonzero()[:ASKED, 0] for digit in range(10)])
    truth, labels = normalize(held_out.images[asked]), held_out.labels[asked]

    operator = Inpainting(~missing_pixels("bottom", (28, 28)))
    generator = torch.Generator().manual_seed(0)
    sampler = DPMSolverPlusPlus(6)
    answers = restore(model, operator(truth), operator, "PGDM", 1, sampler, generator=generator, batch_size=100)[0]
    torch.testing.assert_close(answers[..., :14, :], truth[..., :14, :])
    judge = build_features("digits")[1]
    agreement = (judge.logits(judge(to_uint8(answers))).argmax(1) == labels).double().mean().item()
    assert agreement > 0.3  # any constant guess is right for 10 of 100
    assert psnr(answers, truth).mean() > psnr(means.mean(0), truth).mean() + 1
