r"""The kernel distance by all pairs of images, for a run that measures it again and again against the same real ones.

Of features x of n generated images and y of m real ones it is the unbiased estimate of the squared maximum mean
discrepancy (Bińkowski et al. 2018, arXiv:1801.01401, eq. 4)

.. math:: \mathrm{KID} = \frac1{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac1{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
          - \frac2{nm} \sum_{ij} k(x_i, y_j), \qquad k(x, y) = (x^\top y / F + 1)^3 .

``lightning evaluate`` takes the mean over a hundred pairs of subsets, as published values do: of the same expectation,
but with more noise, in many times the time. The real images' term is computed once.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.metrics.kept import store, stored
from diffusion_lightning.randomness import draw_some

REAL = 5000
"""How many real images are compared with, the same for every seed; all if there are fewer."""

ROWS = 1000
"""Of how many images the kernels with all others are held at once."""


class KernelDistance:
    """KID against fixed real images.

    Args:
        real: their features, ``(M, F)``, M at least 2; it is computed in float64 where they are.
    """

    def __init__(self, real: Tensor) -> None:
        self.real = real.double()
        self._of_real = _mean_of_pairs(self.real)

    def __call__(self, features: Tensor) -> float:
        """That of generated images' features ``(N, F)``, N at least 2."""
        x = features.to(self.real.device).double()
        across = torch.stack([_kernel(rows, self.real).sum() for rows in x.split(ROWS)]).sum()
        return (_mean_of_pairs(x) + self._of_real - 2 * across / (len(x) * len(self.real))).item()


def some_real_features(
    count: int,
    read: Callable[[Sequence[Sequence[int]]], Iterable[Tensor]],
    network: Callable[[Tensor], Tensor],
    path: Path,
) -> Tensor:
    """The features ``(M, F)`` of the real images that are compared with, from disk, or computed and kept there.

    Args:
        count: how many images there are.
        read: those of lists of indices, as uint8 batches ``(B, C, H, W)``; called only if they are not on disk.
        network: such batches → features ``(B, F)``.
        path: of the file; its name says of which images and which network.
    """
    chosen = draw_some(REAL, count, seed=0).sort().values
    found = stored(path, "features")
    if found is not None and len(found["features"]) == len(chosen):
        return found["features"]
    features = torch.cat([network(batch).cpu() for batch in read([chosen.tolist()])])
    store(path, {"features": features})
    return features


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(x: Tensor) -> Tensor:
    """Mean of k over the pairs of different images."""
    every = torch.stack([_kernel(rows, x).sum() for rows in x.split(ROWS)]).sum()
    alike = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum()
    return (every - alike) / (len(x) * (len(x) - 1))
