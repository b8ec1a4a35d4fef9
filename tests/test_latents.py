"""Latents where the flow is known: of a Gaussian it is a line through the mean, of normal data it keeps the length."""

import pytest
import torch
from torch import Tensor

from diffusion_lightning import GaussianMixtureDenoiser, decode, encode, interpolate, slerp
from diffusion_lightning.sde import SDE, VESDE, VPSDE, CosineVPSDE, KarrasSDE, PowerVESDE, RectifiedFlow, SubVPSDE

SDES: list[SDE] = [PowerVESDE(), VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), KarrasSDE(), RectifiedFlow()]
BY_NAME = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
TIGHT = {"rtol": 1e-7, "atol": 1e-7}


def gaussian(sde: SDE, std: float = 0.5) -> GaussianMixtureDenoiser:
    mean = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    return GaussianMixtureDenoiser(mean, torch.tensor([std]).double(), torch.ones(1).double(), sde)


def mixture(sde: SDE) -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]], dtype=torch.float64)
    stds, weights = torch.tensor([0.2, 0.3, 0.25]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    return GaussianMixtureDenoiser(means, stds, weights, sde)


def points(n: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@BY_NAME
def test_of_a_gaussian_it_is_the_standardized_example(sde: SDE) -> None:
    """The flow keeps (x_t − α_t μ)/√(α_t² s² + σ_t²) as it is."""
    x = points()
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    width = (alpha**2 * 0.25 + sigma**2).sqrt()
    mean = torch.tensor([0.3, -0.4], dtype=torch.float64)
    expected = alpha[1] * mean + (x - alpha[0] * mean) * width[1] / width[0]
    torch.testing.assert_close(encode(gaussian(sde), x, **TIGHT), expected, rtol=1e-4, atol=1e-4)


@BY_NAME
def test_decoding_is_the_inverse(sde: SDE) -> None:
    x = mixture(sde).sample_data(6, torch.Generator().manual_seed(0))
    back = decode(mixture(sde), encode(mixture(sde), x, **TIGHT), **TIGHT)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


def test_latents_of_the_models_own_data_are_normal() -> None:
    sde = VPSDE()
    z = encode(mixture(sde), mixture(sde).sample_data(2000, torch.Generator().manual_seed(0)))
    assert z.mean().item() == pytest.approx(0, abs=0.05)
    assert z.std().item() == pytest.approx(1, abs=0.03)


def test_on_the_great_circle_the_length_stays() -> None:
    z0, z1 = points(3), points(3, seed=1)
    z1 = z1 / z1.norm(dim=1, keepdim=True) * z0.norm(dim=1, keepdim=True)
    w = torch.linspace(0, 1, 5)
    way = slerp(z0, z1, w)
    torch.testing.assert_close(way[0], z0)
    torch.testing.assert_close(way[-1], z1)
    torch.testing.assert_close(way.norm(dim=2), z0.norm(dim=1).expand(5, 3))
    # and the angle grows evenly
    cosines = torch.cosine_similarity(way[:-1], way[1:], dim=2).clamp(-1, 1)
    torch.testing.assert_close(cosines, cosines[:1].expand(4, 3))


def test_normal_latents_stay_normal_and_parallel_ones_are_no_trouble() -> None:
    z0, z1 = torch.randn(2, 4000, 50, generator=torch.Generator().manual_seed(0))
    half = slerp(z0, z1, torch.tensor([0.5]))[0]
    assert half.std().item() == pytest.approx(1, abs=0.02)  # on the straight line 0.71
    assert torch.equal(slerp(z0, z0, torch.tensor([0.3]))[0].isfinite(), torch.ones_like(z0, dtype=torch.bool))
    torch.testing.assert_close(slerp(z0[:1], 2 * z0[:1], torch.tensor([0.5]))[0], 1.5 * z0[:1])


def test_the_ends_of_an_interpolation_are_what_was_given() -> None:
    model = mixture(KarrasSDE())
    x = model.sample_data(4, torch.Generator().manual_seed(0))
    frames = interpolate(model, x[:2], x[2:], 5, **TIGHT)
    assert frames.shape == (5, 2, 2)
    torch.testing.assert_close(frames[0], x[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frames[-1], x[2:], rtol=1e-4, atol=1e-4)


def test_of_a_gaussian_the_frames_are_known() -> None:
    sde = KarrasSDE()
    x0, x1 = points(3), points(3, seed=1)
    mean = torch.tensor([0.3, -0.4], dtype=torch.float64)
    frames = interpolate(gaussian(sde), x0, x1, 3, **TIGHT)
    z = slerp(*(encode(gaussian(sde), x, **TIGHT) for x in (x0, x1)), torch.tensor([0.5]))[0]
    # back from T = 80, where the mean is all but lost
    width = (0.25 + torch.tensor([sde.t_min, sde.T], dtype=torch.float64) ** 2).sqrt()
    torch.testing.assert_close(frames[1], mean + (z - mean) * width[0] / width[1], rtol=1e-4, atol=1e-4)


def test_conditions_go_with_their_examples() -> None:
    told = []

    class Told(GaussianMixtureDenoiser):
        def denoise(self, x, t, **cond):
            told.append(cond["labels"].tolist())
            return super().denoise(x, t)

    exact = gaussian(KarrasSDE())
    model = Told(exact.means, exact.stds, exact.weights, exact.sde)
    interpolate(model, points(2), points(2, seed=1), 3, rtol=0.1, atol=0.1, labels=torch.tensor([3, 7]))
    assert told[0] == [3, 7, 3, 7]
    assert told[-1] == [3, 7, 3, 7, 3, 7]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: encode(m, torch.full((1, 2), torch.nan)), "x holds NaN"),
        (lambda m: encode(m, points(), rtol=0), "rtol=0: must be positive"),
        (lambda m: encode(m, points(), t_min=100.0), "t_min=100.0"),
        (lambda m: encode(m, points(), labels=torch.zeros(2)), "labels has shape"),
        (lambda m: interpolate(m, points(2), points(3)), r"x1 has shape \(3, 2\): must be \(2, 2\)"),
        (lambda m: interpolate(m, points(2), points(2), 1), "frames=1: must be at least 2"),
    ],
)
def test_bad_input_is_told_in_a_line(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(gaussian(KarrasSDE()))
