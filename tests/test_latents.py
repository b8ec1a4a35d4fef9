"""Latents where the flow is known: of a Gaussian it is a line through the mean, of normal data it keeps the length."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import (
    ClassifierFreeGuidance,
    Denoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    NoisePrediction,
    decode,
    encode,
    interpolate,
    log_likelihood,
    slerp,
)
from diffusion_lightning.sde import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    KarrasSDE,
    PowerVESDE,
    RectifiedFlow,
    SubVPSDE,
    expand,
)

SDES: list[SDE] = [
    *(PowerVESDE(), VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), KarrasSDE(), RectifiedFlow(), DiscreteVPSDE(200)),
    DiscreteVESDE(200, 0.01, 50.0),
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
TIGHT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7}
MEAN = torch.tensor([0.3, -0.4], dtype=torch.float64)


def gaussian(sde: SDE, std: float = 0.5, mean: Tensor = MEAN) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(mean[None], torch.tensor([std]).double(), torch.ones(1).double(), sde)


def mixture(sde: SDE) -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]], dtype=torch.float64)
    stds, weights = torch.tensor([0.2, 0.3, 0.25]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    return GaussianMixtureDenoiser(means, stds, weights, sde)


def points(n: int = 6, seed: int = 0, size: int = 2) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Shifted(Denoiser):
    """Told of a class, the exact denoiser of N(c·μ, 0.25·I); without one, of N(0, 0.25·I)."""

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        mean = torch.zeros_like(x) if labels is None else labels[:, None] * MEAN
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)

    def null(self, **cond: Any) -> dict[str, Tensor]:
        return {name: torch.zeros_like(value) for name, value in cond.items()}


def on_the_line(sde: SDE, x: Tensor, mean: Tensor | float, there: bool = True) -> Tensor:
    """The flow of N(mean, 0.25·I) keeps (x_t − α_t·mean)/√(0.25·α_t² + σ_t²) as it is: from t_min to T, or back."""
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    width = (0.25 * alpha**2 + sigma**2).sqrt()
    a, b = (0, 1) if there else (1, 0)
    return alpha[b] * mean + (x - alpha[a] * mean) * width[b] / width[a]


@every_sde
def test_of_a_gaussian_it_is_the_standardized_example(sde: SDE) -> None:
    """The solver's error is 1e-7 at each of some 100 steps; DDPM's process is a cubic between its times, not smooth."""
    x = points()
    z = on_the_line(sde, x, MEAN)
    torch.testing.assert_close(encode(gaussian(sde), x, **TIGHT), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decode(gaussian(sde), z, **TIGHT), x, rtol=1e-4, atol=1e-4)


@every_sde
def test_decoding_is_the_inverse(sde: SDE) -> None:
    model = mixture(sde)
    x = model.sample_data(6, torch.Generator().manual_seed(0))
    z = encode(model, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decode(model, z, rtol=1e-6, atol=1e-6), x, rtol=0, atol=1e-3)


def test_they_are_those_of_the_likelihood() -> None:
    model = mixture(VPSDE())
    x = model.sample_data(6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode(model, x, **TIGHT), log_likelihood(model, x, **TIGHT)[1], rtol=0, atol=1e-5)


def test_x_is_placed_where_t_min_says() -> None:
    x, sde = points(), KarrasSDE()
    expected = MEAN + (x - MEAN) * math.sqrt((0.25 + 80**2) / (0.25 + 0.5**2))
    torch.testing.assert_close(encode(gaussian(sde), x, t_min=0.5, **TIGHT), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(gaussian(sde), expected, t_min=0.5, **TIGHT), x, rtol=1e-5, atol=1e-5)


def test_latents_of_the_models_own_data_are_normal() -> None:
    """Of 2,000 points in two dimensions the deviation has a standard error of 1/√8000 = 0.011, the mean of 0.016."""
    model = mixture(VPSDE())
    z = encode(model, model.sample_data(2000, torch.Generator().manual_seed(0)), rtol=1e-4, atol=1e-4)
    assert z.mean().item() == pytest.approx(0, abs=0.05)
    assert z.std().item() == pytest.approx(1, abs=0.035)


def test_a_guided_flow_can_be_run_both_ways() -> None:
    """Of weight 2 about a mean of 0: D = 2·D(x | c) − D(x) is that of the mean 2c."""
    sde = VPSDE()
    model = ClassifierFreeGuidance(Shifted(sde), weight=2)
    x, labels = points(3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    z = encode(model, x, labels=labels, **TIGHT)
    torch.testing.assert_close(z, on_the_line(sde, x, 2 * labels[:, None] * MEAN), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(model, z, labels=labels, **TIGHT), x, rtol=1e-5, atol=1e-5)


def test_each_example_meets_the_tolerances_in_whatever_company() -> None:
    """A hundred that stay where they are, so that the mean error of all is a tenth of that of the one that moves."""

    class Still(GaussianMixtureDenoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return torch.where(torch.arange(len(x))[:, None] == 0, super().denoise(x, t), x)

    exact = mixture(KarrasSDE())
    model = Still(exact.means, exact.stds, exact.weights, exact.sde)
    x = exact.sample_data(1, torch.Generator().manual_seed(0))
    alone = encode(model, x, rtol=1e-9, atol=1e-3)
    together = encode(model, torch.cat([x, torch.zeros(100, 2).double()]), rtol=1e-9, atol=1e-3)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-9)
    assert not together[1:].any()


def test_double_precision_suits_a_network_of_single_precision() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, time_signal: Tensor) -> Tensor:
            return self.layer(x)

    model = NetworkDenoiser(Network(), VPSDE(), NoisePrediction())
    assert encode(model, points(), rtol=1e-2, atol=1e-2).dtype == torch.float32


def test_on_the_great_circle_the_length_stays() -> None:
    z0, z1 = points(3), points(3, seed=1)
    z1 = z1 / z1.norm(dim=1, keepdim=True) * z0.norm(dim=1, keepdim=True)
    way = slerp(z0, z1, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[0], z0)
    torch.testing.assert_close(way[-1], z1)
    torch.testing.assert_close(way.norm(dim=2), z0.norm(dim=1).expand(5, 3))
    # and the angle grows evenly
    cosines = torch.cosine_similarity(way[:-1], way[1:], dim=2).clamp(-1, 1)
    torch.testing.assert_close(cosines, cosines[:1].expand(4, 3))
    # in every unit
    torch.testing.assert_close(slerp(80 * z0, 80 * z1, torch.linspace(0, 1, 5)), 80 * way)


def test_where_there_is_no_circle_there_is_a_line() -> None:
    z, half = points(1).float(), torch.tensor([0.5])
    torch.testing.assert_close(slerp(z, 2 * z, half)[0], 1.5 * z)
    torch.testing.assert_close(slerp(z, -z, half)[0], torch.zeros_like(z))
    torch.testing.assert_close(slerp(torch.zeros_like(z), z, half)[0], math.sqrt(0.5) * z)


def test_the_ends_of_an_interpolation_are_what_was_given() -> None:
    model = mixture(KarrasSDE())
    x = model.sample_data(4, torch.Generator().manual_seed(0))
    frames = interpolate(model, x[:2], x[2:], 5, **TIGHT)
    assert frames.shape == (5, 2, 2)
    torch.testing.assert_close(frames[0], x[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frames[-1], x[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sde", [VPSDE(), KarrasSDE()], ids=["VP", "Karras"])
def test_between_draws_of_normal_data_is_a_draw_of_them(sde: SDE) -> None:
    """Each coefficient's square adds up to 1 where the angle is a right one, which of 200 dimensions it is to 0.07.

    On the straight line the variance in the middle would be a half. That of 40 × 200 numbers has a standard error of
    0.016, and at T is exact to σ(t_min)².
    """
    model = gaussian(sde, std=1.0, mean=torch.zeros(200, dtype=torch.float64))
    frames = interpolate(model, points(40, size=200), points(40, seed=1, size=200), 5, rtol=1e-4, atol=1e-4)
    for frame in frames:
        assert frame.var().item() == pytest.approx(1, abs=0.06)


def test_of_a_gaussian_the_frames_are_known_whatever_the_batch_size() -> None:
    sde, x0, x1 = KarrasSDE(), points(3), points(3, seed=1)
    frames = interpolate(gaussian(sde), x0, x1, 4, batch_size=5, **TIGHT)
    z0, z1 = (on_the_line(sde, x, MEAN) for x in (x0, x1))
    for frame, z in zip(frames, slerp(z0, z1, torch.linspace(0, 1, 4, dtype=torch.float64)), strict=True):
        torch.testing.assert_close(frame, on_the_line(sde, z, MEAN, there=False), rtol=1e-5, atol=1e-5)


def test_conditions_go_with_their_examples() -> None:
    sde, x0, x1, labels = VPSDE(), points(3), points(3, seed=1), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    frames = interpolate(Shifted(sde), x0, x1, 4, batch_size=5, labels=labels, **TIGHT)
    mean = labels[:, None] * MEAN
    z0, z1 = (on_the_line(sde, x, mean) for x in (x0, x1))
    for frame, z in zip(frames, slerp(z0, z1, torch.linspace(0, 1, 4, dtype=torch.float64)), strict=True):
        torch.testing.assert_close(frame, on_the_line(sde, z, mean, there=False), rtol=1e-5, atol=1e-5)


def test_between_two_classes_is_the_flow_between_them() -> None:
    """Of Gaussians of one width, p(x | c0)^(1 − w)·p(x | c1)^w is that about the mean between theirs."""
    sde, x0, x1 = VPSDE(), points(3), points(3, seed=1)
    first, last = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, -4.0]], dtype=torch.float64)
    frames = interpolate(Shifted(sde), x0, x1, 4, batch_size=5, labels=(first, last), **TIGHT)
    z0, z1 = (on_the_line(sde, x, c[:, None] * MEAN) for x, c in ((x0, first), (x1, last)))
    weights = torch.linspace(0, 1, 4, dtype=torch.float64)
    for w, frame, z in zip(weights, frames, slerp(z0, z1, weights), strict=True):
        mean = ((1 - w) * first + w * last)[:, None] * MEAN
        torch.testing.assert_close(frame, on_the_line(sde, z, mean, there=False), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frames[[0, -1]], torch.stack([x0, x1]), rtol=1e-5, atol=1e-5)


BAD: dict[str, tuple[Callable[[Denoiser], Tensor], str]] = {
    "x not finite": (lambda m: encode(m, torch.full((1, 2), torch.nan)), "x holds NaN"),
    "z not finite": (lambda m: decode(m, torch.full((1, 2), torch.inf)), "z holds NaN"),
    "no example": (lambda m: encode(m, torch.zeros(0, 2)), r"x has shape \(0, 2\): must be \(B, …\)"),
    "rtol": (lambda m: encode(m, points(), rtol=0), "rtol=0: must be positive"),
    "a fixed step": (lambda m: decode(m, points(), method="rk4"), "method='rk4': must be one of dopri5"),  # type: ignore[arg-type]
    "t_min": (lambda m: encode(m, points(), t_min=100.0), "t_min=100.0: must be in"),
    "labels": (lambda m: encode(m, points(), labels=torch.zeros(2)), "labels has shape"),
    "a pair of labels": (
        lambda m: interpolate(m, points(1), points(1), labels=(torch.zeros(1), torch.zeros(2))),
        r"labels has shape \(2,\): must have 1",
    ),
    "shapes": (lambda m: interpolate(m, points(2), points(3)), r"x1 has shape \(3, 2\): must be \(2, 2\)"),
    "frames": (lambda m: interpolate(m, points(2), points(2), 1), "frames=1: must be at least 2"),
    "batch_size": (lambda m: interpolate(m, points(2), points(2), batch_size=0), "batch_size=0: must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_line(case: str) -> None:
    call, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        call(Shifted(KarrasSDE()))
