"""Groups of pictures alike, which k-means finds by itself, for a network to be told of in the place of classes.

A network that is told which of k groups g a picture is of has k simpler distributions to learn than p(x), or than
p(x | c) of a class c, though nobody gave a label (Bao et al. 2022, arXiv:2212.00362; Hu et al. 2023, arXiv:2210.06462).
What is wanted of it comes in two draws,

    p(x | c) = Σ_g p(g | c) p(x | g),    p(g | c) = N_g / N_c, the group's share of the class,

and without classes likewise, as if all were of one.

Pictures are compared as they look from afar, at most 14 × 14 pixels. Lloyd's algorithm (1982): each picture belongs to
the nearest of k centres, and each centre becomes the mean of its pictures, until nothing changes. The first centres are
drawn far from each other (k-means++, Arthur & Vassilvitskii 2007) with a fixed seed, so that the groups are a function
of the pictures alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 14
"""Pixels that a picture is reduced to, at most, before it is compared."""

ROUNDS = 25
"""At most; the groups hardly change any more long before."""

BATCH = 2000


@dataclass(frozen=True)
class Groups:
    """What the groups of a data set are: those of class c are ``k c … k c + k − 1``, k to a class.

    Args:
        counts: training examples of each group.
        classes: how many classes there are; 1 if there are none to be asked for.
    """

    counts: Sequence[int]
    classes: int = 1

    @property
    def class_counts(self) -> list[int]:
        """Training examples of each class."""
        return torch.tensor(self.counts).view(self.classes, -1).sum(1).tolist()

    def class_of(self, groups: Tensor) -> Tensor:
        """The class that each of these groups is of."""
        return groups // (len(self.counts) // self.classes)

    def draw(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A group for each of these classes, int64 ``(B,)``, with probability N_g / N_c.

        Groups of a class that has no example at all are drawn alike.
        """
        shares = torch.tensor(self.counts, dtype=torch.float64, device=classes.device).view(self.classes, -1)
        shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, 1)
        drawn = torch.multinomial(shares[classes], 1, generator=generator)[:, 0]
        return classes * shares.shape[1] + drawn


@dataclass(frozen=True)
class Centres:
    """The centres of each class's groups, float64 ``(classes, k, D)``."""

    values: Tensor

    def of(self, images: Tensor, classes: Tensor) -> Tensor:
        """The group of each of uint8 images ``(N, C, H, W)``, int64 ``(N,)``: that of its class's nearest centre."""
        groups, seen = torch.empty_like(classes), _from_afar(images)
        for number, centres in enumerate(self.values):
            own = classes == number
            groups[own] = number * len(centres) + _nearest(seen[own], centres)
        return groups


def cluster(images: Tensor, labels: Tensor, clusters: int, classes: int = 1) -> Centres:
    """Divide uint8 images ``(N, C, H, W)`` of each class, ``(N,)`` in [0, classes), into groups.

    Raises:
        ValueError: if there are fewer images than groups.
    """
    seen = _from_afar(images)
    return Centres(torch.stack([_lloyd(seen[labels == number], clusters) for number in range(classes)]))


def _lloyd(seen: Tensor, clusters: int) -> Tensor:
    if len(seen) < clusters:
        raise ValueError(f"data.condition.clusters={clusters}: must be at most the number of images, {len(seen)}")
    centres = _far_from_each_other(seen, clusters)
    groups = torch.full((len(seen),), -1)
    for _ in range(ROUNDS):
        before, groups = groups, _nearest(seen, centres)
        if torch.equal(before, groups):
            break
        sizes = torch.bincount(groups, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, groups, seen)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres


def _far_from_each_other(seen: Tensor, clusters: int) -> Tensor:
    """Some of the pictures, each drawn with a probability that grows as the squared distance to those before it."""
    generator = torch.Generator().manual_seed(0)
    weights, chosen = torch.ones(len(seen), dtype=torch.float64), []
    for _ in range(clusters):
        chosen.append(torch.multinomial(weights, 1, generator=generator))
        squares = (seen - seen[chosen[-1]]).square().sum(1)
        weights = squares if len(chosen) == 1 else torch.minimum(weights, squares)
        if not weights.any():  # fewer different pictures than groups
            weights = torch.ones_like(weights)
    return seen[torch.cat(chosen)]


def _from_afar(images: Tensor) -> Tensor:
    """Images made small, ``(N, D)``; float64, so that groups do not depend on the order in which a processor adds."""
    size = (min(images.shape[2], SIDE), min(images.shape[3], SIDE))
    return torch.cat([F.adaptive_avg_pool2d(batch.double(), size).flatten(1) for batch in images.split(BATCH)])


def _nearest(seen: Tensor, centres: Tensor) -> Tensor:
    half_squares = centres.square().sum(1) / 2
    return torch.cat([(half_squares - batch @ centres.T).argmin(1) for batch in seen.split(BATCH)])
