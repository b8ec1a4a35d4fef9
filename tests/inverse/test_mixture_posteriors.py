r"""Where the data is a mixture the posterior is one, with weights ∝ w_k N(y; Aμ_k, s_k² AAᵀ + σ_y² I)."""

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_lightning import (
    VPSDE,
    DPMSolverPlusPlus,
    GaussianMixtureDenoiser,
    Inpainting,
    KarrasSDE,
    RePaint,
    SDEdit,
    TwistedSMC,
    restore,
)
from diffusion_lightning.samplers import DDIM

MEANS = torch.tensor([[-1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])
STDS = torch.tensor([0.2, 0.2, 0.2])
WEIGHTS = torch.tensor([0.6, 0.2, 0.2])
FIRST = Inpainting(torch.tensor([True, False]))
"""The first coordinate is seen, so that two components stay possible, three to one."""


def mixture(sde=None) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(MEANS, STDS, WEIGHTS, sde or KarrasSDE())


def share_above(samples: Tensor) -> float:
    return (samples[:, 1] > 0).float().mean().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_particles_find_the_weights_of_the_modes(seed: int) -> None:
    """0.75, of which 1,000 samples vary by 0.014; the population's own bias is below 0.03."""
    samples = restore(
        mixture(),
        torch.tensor([[-1.0, 0.0]]),
        FIRST,
        partial(TwistedSMC, particles=16, steps=100),
        num=1000,
        noise_std=0.2,
        generator=torch.Generator().manual_seed(seed),
        batch_size=1000,
    )
    assert share_above(samples) == pytest.approx(0.75, abs=0.06)
    # the first coordinate's own posterior: N(−1, 1/(1/0.2² + 1/0.2²))
    assert samples[:, 0].mean().item() == pytest.approx(-1, abs=0.02)
    assert samples[:, 0].std().item() == pytest.approx(0.2 / 2**0.5, abs=0.02)


def test_weights_mend_a_wrong_guess() -> None:
    """Told that the data is ten times as wide as it is, the proposal is far off, and the samples are right still."""
    samples = restore(
        mixture(),
        torch.tensor([[-0.7, 0.0]]),
        FIRST,
        partial(TwistedSMC, particles=64, steps=100, data_std=10.0, resample_below=1.0),
        num=400,
        noise_std=0.1,
        generator=torch.Generator().manual_seed(0),
        batch_size=400,
    )
    # N(−1, 0.2²) seen at −0.7 with noise of 0.1
    assert samples[:, 0].mean().item() == pytest.approx(-0.76, abs=0.02)
    assert share_above(samples) == pytest.approx(0.75, abs=0.08)


def test_what_is_drawn_anew_at_every_step_is_weighted_once() -> None:
    """Noise that leaves all three components possible, 0.6, 0.2 and 0.2: the first coordinate's mean is −0.54."""
    samples = restore(
        mixture(),
        torch.zeros(1, 2),
        FIRST,
        partial(TwistedSMC, particles=16, steps=50, resample_below=1.0),
        num=1500,
        noise_std=0.6,
        generator=torch.Generator().manual_seed(0),
        batch_size=1500,
    )
    assert samples[:, 0].mean().item() == pytest.approx(-0.54, abs=0.09)


def test_more_resamplings_bring_the_unknown_part_to_the_known() -> None:
    """Correlated coordinates, of which one is seen: without going back the other one's mean falls short of its own."""
    means = torch.stack([torch.linspace(-1, 1, 41)] * 2, 1)
    line = GaussianMixtureDenoiser(means, torch.full((41,), 0.05), torch.ones(41), VPSDE())
    y = torch.tensor([[0.8, 0.0]])
    errors = []
    for resamplings in (1, 4, 16):
        drawn = restore(
            line,
            y,
            FIRST,
            partial(RePaint, steps=20, resamplings=resamplings),
            num=300,
            generator=torch.Generator().manual_seed(0),
            batch_size=300,
        )
        assert torch.equal(drawn[:, 0], torch.full((300,), 0.8))
        errors.append((drawn[:, 1] - 0.8).abs().mean().item())
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]


def test_where_nothing_is_known_going_back_and_forth_changes_nothing() -> None:
    """Going back adds the noise that going down took away: the spread is that of going down once."""
    model = GaussianMixtureDenoiser(torch.zeros(1, 2), torch.full((1,), 0.5), torch.ones(1), KarrasSDE())
    nothing = Inpainting(torch.tensor([False, False]))
    spread = []
    for resamplings in (1, 4):
        method = partial(RePaint, steps=40, jump_length=3, resamplings=resamplings)
        generator = torch.Generator().manual_seed(0)
        drawn = restore(model, torch.zeros(1, 2), nothing, method, 3000, generator=generator, batch_size=3000)
        spread.append(drawn.std().item())
    assert spread[0] == pytest.approx(0.45, abs=0.05)
    assert spread[1] == pytest.approx(spread[0], abs=0.03)


def test_repaint_counts_its_ways() -> None:
    sampler = RePaint(torch.zeros(1, 2), FIRST, steps=6, jump_length=2, resamplings=3)
    sampler(mixture(), (2, 2))
    assert sampler._schedule(sampler.levels(KarrasSDE())) == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 4, 5]
    assert sampler.nfe == 14
    assert len(sampler(mixture(), (2, 2), trajectory=True)) == 15


def test_repaint_does_not_go_back_where_the_measurement_is_the_noisier() -> None:
    sampler = RePaint(torch.zeros(1, 2), FIRST, noise_std=0.5, steps=20, jump_length=2, resamplings=5)
    levels = sampler.levels(KarrasSDE())
    schedule = sampler._schedule(levels)
    back = {i for i, j in zip(schedule[1:], schedule, strict=False) if i <= j}
    assert back
    assert all(levels[i + 2] >= 0.5 for i in back)
    # and what it draws is about the measurement, which the model alone would leave
    drawn = restore(
        mixture(),
        torch.tensor([[-1.0, 0.0]]),
        FIRST,
        "RePaint",
        500,
        noise_std=0.3,
        generator=torch.Generator().manual_seed(0),
        batch_size=500,
    )
    assert ((drawn[:, 0] + 1).square().mean() / 0.3**2).item() < 1.5


def test_sdedit_is_a_channel_of_known_width() -> None:
    """Noised to σ̃₀, N(0, s²) data is drawn back with gain s²/(s² + σ̃₀²): mean and variance of the result are known."""
    gaussian = GaussianMixtureDenoiser(torch.zeros(1, 1), torch.full((1,), 0.5), torch.ones(1), KarrasSDE())
    picture = torch.full((1, 1), 1.2)
    drawn = SDEdit(picture, noise_level=0.5, sampler=DPMSolverPlusPlus(60))(
        gaussian, (20000, 1), generator=torch.Generator().manual_seed(0)
    )
    # the flow from σ̃₀ to 0 scales by s/√(s² + σ̃₀²)
    scale = 0.5 / (0.5**2 + 0.5**2) ** 0.5
    assert drawn.mean().item() == pytest.approx(1.2 * scale, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5 * scale, abs=0.01)


@pytest.mark.parametrize("sde", [KarrasSDE(), VPSDE()], ids=["karras", "vp"])
def test_sdedit_is_the_picture_at_little_noise_and_the_models_own_at_much(sde) -> None:
    model = mixture(sde)
    picture = torch.tensor([[-1.0, 0.9]])
    lowest, highest = DPMSolverPlusPlus(20).limits(sde)[1], DPMSolverPlusPlus(20).limits(sde)[0]
    near = SDEdit(picture, noise_level=1.5 * lowest)(model, (50, 2), generator=torch.Generator().manual_seed(0))
    assert (near - picture).abs().max() < 0.1
    far = SDEdit(picture, noise_level=highest)(model, (4000, 2), generator=torch.Generator().manual_seed(0))
    own = DPMSolverPlusPlus(20)(model, (4000, 2), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(far.mean(0), own.mean(0), rtol=0, atol=0.08)


def test_sdedit_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"noise_level=0: must be above zero"):
        SDEdit(torch.zeros(1, 2), noise_level=0)
    with pytest.raises(TypeError, match="sampler=DDIM: must be Heun or DPMSolverPlusPlus"):
        SDEdit(torch.zeros(1, 2), sampler=DDIM(5))
    with pytest.raises(ValueError, match=r"noise_level=100: must be above 0.002 and at most 80 for this KarrasSDE"):
        SDEdit(torch.zeros(1, 2), noise_level=100)(mixture(), (1, 2))
    with pytest.raises(ValueError, match=r"picture: has shape \(1, 3\): must be \(4, 2\), or one picture for all"):
        SDEdit(torch.zeros(1, 3))(mixture(), (4, 2))
