"""The network that judges digits: what it was trained to, and in what units its features are."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusion_lightning import EmbeddedMNIST
from diffusion_lightning.metrics.digits import JUDGE_WEIGHTS, JudgedDigitFeatures
from diffusion_lightning.metrics.features import extract_features


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """2,000 of the embedded digits, uint8 (2000, 1, 28, 28), and their labels."""
    images, _ = EmbeddedMNIST().load_images()
    return images.images[:2_000], images.labels[:2_000]


@pytest.fixture(scope="module")
def features() -> JudgedDigitFeatures:
    return JudgedDigitFeatures()


@pytest.fixture(scope="module")
def taken(features: JudgedDigitFeatures, digits: tuple[Tensor, Tensor]) -> Tensor:
    return extract_features(features, digits[0].split(500))


def test_weights_are_small_enough_to_ship_and_say_how_they_were_trained() -> None:
    assert JUDGE_WEIGHTS.stat().st_size < 1_100_000
    with safe_open(JUDGE_WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert float(metadata["test_accuracy"]) >= 0.99
    assert {tensor.dtype for tensor in load_file(JUDGE_WEIGHTS).values()} == {torch.float16, torch.int64}
    assert int(metadata["epochs"]) > 0
    assert metadata["torch"]


def test_it_reads_digits(features: JudgedDigitFeatures, taken: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    logits = features.logits(taken)
    assert logits.shape == (2_000, 10)
    assert (logits.argmax(1) == labels).float().mean() >= 0.99
    with torch.no_grad():
        torch.testing.assert_close(logits[:64], features.classifier(images[:64] / 127.5 - 1), rtol=1e-3, atol=1e-3)


def test_no_feature_dominates_or_is_dead(taken: Tensor) -> None:
    z = taken.double()
    assert z.shape == (2_000, 128)
    assert z.mean(0).abs().max() < 0.15
    assert z.std(0).min() > 0.85
    assert z.std(0).max() < 1.15
    assert torch.linalg.eigvalsh(torch.cov(z.T)).min() > 1e-3


def test_no_picture_is_infinitely_far(features: JudgedDigitFeatures, taken: Tensor) -> None:
    noise = torch.randint(0, 256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    assert features(noise).norm(dim=1).max() < 20 * taken.norm(dim=1).mean()
