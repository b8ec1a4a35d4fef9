"""restore: the shapes of what is given and of the answers, every method by its name, and what it says of bad input."""

from functools import partial

import pytest
import torch

from diffusion_lightning import (
    DPS,
    MMPS,
    Clip,
    Downsample,
    DPMSolverPlusPlus,
    GaussianMixtureDenoiser,
    Inpainting,
    KarrasSDE,
    Quantize,
    TwistedSMC,
    restore,
)
from diffusion_lightning.inverse import METHODS

SHAPE = (1, 4, 4)
HALF = Inpainting(torch.arange(4)[:, None] < 2)
FAST = DPMSolverPlusPlus(4)


def pictures() -> GaussianMixtureDenoiser:
    """A dark, a grey and a bright picture."""
    means = torch.tensor([-0.8, 0.0, 0.8]).reshape(3, 1, 1, 1).expand(3, *SHAPE).contiguous()
    return GaussianMixtureDenoiser(means, torch.full((3,), 0.1), torch.ones(3), KarrasSDE())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("method", METHODS)
def test_known_pixels_come_out_exactly_without_noise(method: str) -> None:
    y = HALF(torch.full((1, *SHAPE), 0.75))
    answers = restore(pictures(), y, HALF, method, num=3, generator=seeded())
    assert answers.shape == (3, *SHAPE)
    if method == "DPS":  # about, as its docstring says
        torch.testing.assert_close(answers * HALF.mask, y.expand(3, *SHAPE), rtol=0, atol=0.05)
    else:
        torch.testing.assert_close(answers * HALF.mask, y.expand(3, *SHAPE), rtol=0, atol=1e-6)
    assert (answers[:, :, 2:].mean((1, 2, 3)) > 0.4).all()  # the bright picture's other half


def test_one_measurement_with_and_without_its_axis_and_several() -> None:
    y = HALF(torch.stack([torch.full(SHAPE, -0.8), torch.full(SHAPE, 0.8)]))
    one = restore(pictures(), y[0], HALF, num=2, sampler=FAST, generator=seeded())
    same = restore(pictures(), y[:1], HALF, num=2, sampler=FAST, generator=seeded())
    assert torch.equal(one, same)
    both = restore(pictures(), y, HALF, num=3, sampler=FAST, generator=seeded())
    assert both.shape == (3, 2, *SHAPE)
    assert (both[:, 0].mean((1, 2, 3)) < -0.5).all()
    assert (both[:, 1].mean((1, 2, 3)) > 0.5).all()


@pytest.mark.parametrize("method", METHODS)
def test_several_measurements_in_batches_each_get_their_own(method: str) -> None:
    y = HALF(torch.stack([torch.full(SHAPE, value) for value in (-0.8, 0.0, 0.8)]))
    answers = restore(pictures(), y, HALF, method, num=2, noise_std=0.05, generator=seeded(), batch_size=4)
    known = answers[..., :2, :].mean((0, 2, 3, 4))
    torch.testing.assert_close(known, torch.tensor([-0.8, 0.0, 0.8]), rtol=0, atol=0.1)


def test_the_shape_is_found_from_the_measurement() -> None:
    y = torch.full((1, 1, 2, 2), 0.8)
    answers = restore(pictures(), y, Downsample(2), num=2, sampler=FAST, generator=seeded())
    torch.testing.assert_close(Downsample(2)(answers), y.expand(2, 1, 2, 2))


@pytest.mark.parametrize("method", [DPS, partial(TwistedSMC, particles=16)])
@pytest.mark.parametrize("operator", [Clip(-0.4, 0.4), Quantize(3)], ids=["clip", "quantize"])
def test_operators_that_are_not_linear(method, operator) -> None:
    y = operator(torch.full((1, *SHAPE), 0.8))
    answers = restore(pictures(), y, operator, method, num=4, noise_std=0.1, generator=seeded())
    assert (answers.mean((1, 2, 3)) > 0.4).all()


def test_conditions_are_repeated_for_the_answers() -> None:
    told = []

    class Told(GaussianMixtureDenoiser):
        def denoise(self, x, t, **cond):
            told.append(cond["labels"].tolist())
            return super().denoise(x, t)

    exact = pictures()
    model = Told(exact.means, exact.stds, exact.weights, exact.sde)
    y = torch.zeros(2, *SHAPE)
    restore(model, y, HALF, "Replacement", num=2, sampler=DPMSolverPlusPlus(1), labels=torch.tensor([3, 7]))
    restore(model, y, HALF, partial(TwistedSMC, steps=1, particles=2), num=1, labels=torch.tensor([3, 7]))
    assert told == [[3, 7, 3, 7], [3, 3, 7, 7]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "Magic"}, "method='Magic': must be among MMPS, PGDM"),
        ({"num": 0}, "num=0: must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be"),
        ({"noise_std": -0.1}, "noise_std=-0.1: must be zero"),
        ({"y": torch.zeros(4, 4)}, r"y: has shape \(4, 4\): a measurement of Inpainting has 3 axes"),
        ({"y": torch.zeros(1, 1, 5, 5)}, r"mask: has shape \(4, 1\), examples \(1, 5, 5\)"),
        ({"y": torch.full((1, *SHAPE), torch.nan)}, "y: holds NaN"),
        ({"operator": Clip()}, "operator: Clip is not linear, and MMPS needs a linear one: take the method DPS or"),
        ({"operator": Clip(), "method": "RePaint"}, "Clip is not linear, and RePaint needs"),
        ({"method": "RePaint", "sampler": FAST}, "sampler: the method draws by itself"),
        ({"labels": torch.zeros(3)}, r"labels has shape \(3,\): must have 1 entries"),
        ({"method": partial(MMPS, iterations=0)}, "iterations=0: must be"),
        ({"method": partial(TwistedSMC, particles=0)}, "particles=0: must be"),
    ],
)
def test_bad_input_is_told_in_a_line(given, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        restore(**{"denoiser": pictures(), "y": torch.zeros(1, *SHAPE), "operator": HALF} | given)
    assert "\n" not in str(error.value)
