"""Groups of pictures alike, which k-means finds by itself: classes for data that have none, or whose own are not used.

A network that is told which of k groups a picture is of has k simpler distributions to learn instead of one, as with
classes, though nobody gave a label (Bao et al. 2022, arXiv:2212.00362; Hu et al. 2023, arXiv:2210.06462). Samples are
drawn of the groups in their shares of the data, and are then of the data's own distribution.

Pictures are compared as they look from afar, at most 14 × 14 pixels. Lloyd's algorithm (1982): each picture belongs to
the nearest of k centres, and each centre becomes the mean of its pictures, until nothing changes. The first centres are
drawn with a fixed seed, so that the groups are a function of the pictures alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 14
"""Pixels that a picture is reduced to, at most, before it is compared."""

ROUNDS = 50
"""At most; the groups hardly change any more long before."""

BATCH = 2000


def cluster(images: Tensor, clusters: int) -> Tensor:
    """The centres, float64 ``(clusters, D)``, of the groups of uint8 images ``(N, C, H, W)``.

    Raises:
        ValueError: if there are fewer images than groups.
    """
    if len(images) < clusters:
        raise ValueError(f"data.condition.clusters={clusters}: must be at most the number of images, {len(images)}")
    seen = _seen(images)
    # in float64, so that the groups do not depend on the order in which a processor adds up
    centres = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:clusters]]
    groups = torch.full((len(seen),), -1)
    for _ in range(ROUNDS):
        before, groups = groups, _nearest(seen, centres)
        if torch.equal(before, groups):
            break
        sizes = torch.bincount(groups, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, groups, seen)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres


def groups_of(images: Tensor, centres: Tensor) -> Tensor:
    """The group of each of uint8 images ``(N, C, H, W)``, int64 ``(N,)``: that of the nearest centre."""
    return _nearest(_seen(images), centres)


def _seen(images: Tensor) -> Tensor:
    """Images from afar, float64 ``(N, D)``."""
    size = [min(side, SIDE) for side in images.shape[2:]]
    return torch.cat([F.adaptive_avg_pool2d(batch.double(), size).flatten(1) for batch in images.split(BATCH)])


def _nearest(seen: Tensor, centres: Tensor) -> Tensor:
    half_squares = centres.square().sum(1) / 2
    return torch.cat([(half_squares - batch @ centres.T).argmin(1) for batch in seen.split(BATCH)])
