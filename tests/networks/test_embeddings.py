import math

import pytest
import torch

from diffusion_lightning.networks.embeddings import GaussianFourierFeatures, SinusoidalEmbedding


def test_fourier_features_follow_their_formula():
    features = GaussianFourierFeatures(6, scale=2.0)
    t = torch.tensor([0.0, 0.3, 0.9])
    for row, time in zip(features(t), t.tolist(), strict=True):
        w = features.frequencies.tolist()
        expected = [math.sin(2 * math.pi * f * time) for f in w] + [math.cos(2 * math.pi * f * time) for f in w]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_fourier_frequencies_are_normal_with_the_given_scale():
    torch.manual_seed(0)
    w = GaussianFourierFeatures(20000, scale=30.0).frequencies
    assert w.mean().abs() < 1.5
    assert w.std() == pytest.approx(30.0, rel=0.03)
    assert ((w.abs() < 30.0).float().mean() - 0.6827).abs() < 0.02


def test_fourier_frequencies_are_saved_and_never_trained():
    features = GaussianFourierFeatures(8, scale=1.0)
    assert "frequencies" in features.state_dict()
    assert isinstance(features.frequencies, torch.nn.Parameter)
    assert not features.frequencies.requires_grad
    other = GaussianFourierFeatures(8, scale=1.0)
    assert not torch.equal(other.frequencies, features.frequencies)
    other.load_state_dict(features.state_dict())
    assert torch.equal(other.frequencies, features.frequencies)


def test_sinusoidal_embedding_follows_its_formula():
    # dim 6: angular frequencies 1, 1e-2, 1e-4 on the scaled time
    embedding = SinusoidalEmbedding(6, scale=1000.0, max_period=10000.0)(torch.tensor([0.123]))
    phases = [123.0, 1.23, 0.0123]
    expected = [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
    assert embedding[0].tolist() == pytest.approx(expected, abs=2e-5)


def test_sinusoidal_embedding_tells_nearby_times_apart_thanks_to_its_scale():
    t = torch.tensor([0.1, 0.11])
    scaled, unscaled = SinusoidalEmbedding(128)(t), SinusoidalEmbedding(128, scale=1.0)(t)
    assert (scaled[0] - scaled[1]).norm() > 3
    assert (unscaled[0] - unscaled[1]).norm() < 0.05


@pytest.mark.parametrize("make", [lambda: GaussianFourierFeatures(64, scale=30.0), lambda: SinusoidalEmbedding(64)])
def test_embeddings_keep_float32_precision_under_autocast_and_in_bfloat16_networks(make):
    embedding = make()
    t = torch.tensor([0.25, 0.5, 1.0])  # exact in bfloat16
    exact = embedding(t.double())
    assert exact.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = embedding(t)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, exact.float(), atol=2e-4, rtol=0)

    low = embedding.to(torch.bfloat16)  # rounds the random frequencies, which is harmless; phases must not be rounded
    torch.testing.assert_close(low(t.bfloat16()), low(t.double()).float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianFourierFeatures(5, 1.0), "dim must be .* got 5"),
        (lambda: GaussianFourierFeatures(0, 1.0), "dim must be .* got 0"),
        (lambda: GaussianFourierFeatures(4, 0.0), r"scale must be positive, got 0\.0"),
        (lambda: GaussianFourierFeatures(4, float("inf")), "scale must be positive, got inf"),
        (lambda: SinusoidalEmbedding(2), "dim must be .* got 2"),
        (lambda: SinusoidalEmbedding(7), "dim must be .* got 7"),
        (lambda: SinusoidalEmbedding(8, scale=-1.0), r"scale must be positive, got -1\.0"),
        (lambda: SinusoidalEmbedding(8, max_period=1.0), r"max_period must be greater than 1, got 1\.0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
