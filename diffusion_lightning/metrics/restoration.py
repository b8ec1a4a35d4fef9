"""What restored pictures are worth beside the truth, and whether the answers are as uncertain as they should be."""

from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.images import figure_picture
from diffusion_lightning.inverse import Operator

STATISTICS = 16
"""Random directions of each picture along which the truth is ranked among the answers."""

CONFIDENCE = 0.99
"""With which an answer that is right is said to agree with the measurement."""

EIGHT_BITS = 1 / 255
"""Half a step of pictures of 8 bits in [-1, 1]: the noise of what is told to have none."""


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """10 log10(4 / mean squared error) in decibels, ``(B,)``, of pictures in [-1, 1]."""
    return 10 * torch.log10(4 / (x - truth).square().flatten(1).mean(1))


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """The structural similarity (Wang et al. 2004), ``(B,)``, of pictures in [-1, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(x, truth, data_range=2.0, reduction="none").reshape(-1)  # type: ignore


def lpips(x: Tensor, truth: Tensor) -> Tensor | None:
    """The learnt perceptual distance (Zhang et al. 2018), ``(B,)``; None where AlexNet's weights are not at hand.

    Nothing is downloaded: they are those that torchvision has kept.
    """
    if not any(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth")):
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    colour, of_truth = (each.clamp(-1, 1).expand(-1, 3, -1, -1) for each in (x, truth))
    pairs = zip(colour.split(1), of_truth.split(1), strict=True)
    return torch.stack([learned_perceptual_image_patch_similarity(a, b, net_type="alex") for a, b in pairs])


def agreeing(x: Tensor, y: Tensor, operator: Operator, noise_std: float) -> Tensor:
    """Which answers agree with the measurement, ``(B,)`` bool.

    With noise of standard deviation σ_y, ‖y − A(x)‖²/σ_y² of an exact draw x of p(x0 | y) is χ² distributed with as
    many degrees of freedom as y has numbers that were measured: it is to lie in the middle 99 % of that. Without noise,
    no number may be further off than half a step of 8-bit pictures.

    Args:
        x: answers, ``(B, …)``.
        y: the measurement of each, ``(B, …)``.
        operator: A.
        noise_std: σ_y.
    """
    residual = (operator.measured(y) - operator(x)).flatten(1).double()
    if noise_std == 0:
        return residual.abs().amax(1) <= EIGHT_BITS
    from scipy.stats import chi2

    low, high = chi2.interval(CONFIDENCE, operator.count(y))
    distance = residual.square().sum(1) / noise_std**2
    return (distance >= low) & (distance <= high)


def ranks(answers: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    """The rank of the truth among the answers along random directions, ``(B, 16)``, from 0 to num; ties by lot.

    If truth and answers are draws of one distribution each rank is equally likely (simulation-based calibration; Talts
    et al. 2018, arXiv:1804.06788): answers too alike put the truth at the ends, answers too unlike in the middle.

    Args:
        answers: ``(num, B, …)``.
        truth: ``(B, …)``.
        seed: of the directions and the lots.
    """
    generator = torch.Generator().manual_seed(seed)
    flat, true = answers.flatten(2).double().cpu(), truth.flatten(1).double().cpu()
    directions = torch.randn(flat.shape[-1], STATISTICS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    drawn, own = flat @ directions, true @ directions
    # what all answers and the truth agree on would be a tie but for rounding
    scale = 1e-6 * (1 + own.abs())
    lots = torch.rand(drawn.shape, generator=generator, dtype=torch.float64) < 0.5
    is_tie = (drawn - own).abs() <= scale
    return torch.where(is_tie, lots, drawn < own).sum(0)


def calibration_error(ranks: Tensor, num: int) -> float:
    """The largest distance between the shares of the ranks 0 … num, summed up, and those of a uniform distribution.

    0 if they are equally frequent; 1/2 and more if the truth is always at an end.
    """
    shares = torch.bincount(ranks.flatten(), minlength=num + 1).double() / ranks.numel()
    expected = torch.arange(1, num + 2, dtype=torch.float64) / (num + 1)
    return (shares.cumsum(0) - expected).abs().max().item()


def calibration_picture(ranks: Tensor, num: int) -> Tensor:
    """The ranks' histogram, and the band in which 95 % of each bar would be if they were uniform; uint8 ``(3, H, W)``.

    The band is of as many independent ranks as there are pictures: the directions of one picture are not.
    """
    from matplotlib.figure import Figure
    from scipy.stats import binom

    figure = Figure(figsize=(5, 3), layout="constrained")
    panel = figure.subplots()
    shares = torch.bincount(ranks.flatten(), minlength=num + 1).double() / ranks.numel()
    low, high = (bound / len(ranks) for bound in binom.interval(0.95, len(ranks), 1 / (num + 1)))
    panel.bar(range(num + 1), shares.tolist(), color="tab:blue")
    panel.axhspan(low, high, color="tab:gray", alpha=0.3, label="exact draws: 95 %")
    panel.axhline(1 / (num + 1), color="black", linewidth=0.8)
    panel.set_xlabel(f"rank of the truth among {num} answers")
    panel.set_ylabel("share")
    panel.legend(loc="upper center")
    return figure_picture(figure)
