r"""The Fréchet distance of infinitely many samples, extrapolated from those that there are.

The distance of n samples is too large, and by how much depends on the features and on what is compared (Chong &
Forsyth 2020, arXiv:1911.07023): to leading order in 1/n, of Gaussian features of covariance Σ against Σᵣ,

.. math:: \mathrm E\,\mathrm{FID}_n = \mathrm{FID}_\infty + \frac{\operatorname{tr}\Sigma}{n} + \frac1{2n}
          \Big(\sum_{ij} \frac{\sqrt{\lambda_i\lambda_j}}{\sqrt{\lambda_i}+\sqrt{\lambda_j}}
          + \frac12 \sum_i \sqrt{\lambda_i}\Big),

λ the eigenvalues of :math:`\Sigma_r^{1/2} \Sigma\, \Sigma_r^{1/2}`. So a line is fitted to FID_n against 1/n, and its
value at 0 taken. Here N samples are parted at random into k equal parts, for k = 1, …, `MOST_PARTS`: the points of the
line are at n = N/k, evenly in 1/n, each the mean over the parts, so that every sample counts at every n.

All points share the samples, so how far they are from the line says nothing of how far the line would be from that of
other samples. The distances of the smallest parts do, which are independent of each other: the standard error of their
mean is given as that of the result. Where the distance itself is almost 0 it is too large, by half in the digits'
features.
"""

import torch
from torch import Tensor

from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.randomness import draw_some

MOST_PARTS = 4
"""Of the samples. Where there are more, they are smaller, and the terms in 1/n² count."""


def least_samples(num_features: int) -> int:
    """How many samples are needed: in the smallest part more than features, or its covariance would be singular."""
    return MOST_PARTS * (num_features + 1)


def infinite_frechet_distance(features: Tensor, moments: Moments, seed: int = 0) -> tuple[float, float]:
    """FID of infinitely many samples against a mean and a covariance, and its standard error.

    Args:
        features: of the samples, ``(N, F)``.
        moments: of the real images' features.
        seed: decides which sample is in which part.

    Raises:
        ValueError: for fewer samples than :func:`least_samples`.
    """
    from diffusion_lightning.metrics.evaluation import frechet_distances  # here, for it imports this

    total, least = len(features), least_samples(features.shape[1])
    if total < least:
        raise ValueError(
            f"{total} samples: must be at least {least} to extrapolate FID, {MOST_PARTS} parts of more samples than "
            f"the {features.shape[1]} features"
        )
    order = draw_some(total, total, seed).to(features.device)
    inverse, means = [], []
    for count in range(1, MOST_PARTS + 1):
        size = total // count
        parts = features[order[: count * size]].split(size)
        distances = torch.tensor(frechet_distances(parts, moments), dtype=torch.float64)
        inverse.append(1 / size)
        means.append(distances.mean())
    x, y = torch.tensor(inverse, dtype=torch.float64), torch.stack(means)
    deviation = x - x.mean()
    slope = (deviation * y).sum() / deviation.square().sum()
    error = distances.std() / MOST_PARTS**0.5
    return (y.mean() - slope * x.mean()).item(), error.item()
