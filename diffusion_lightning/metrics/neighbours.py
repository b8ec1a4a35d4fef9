"""Memorization: the real images nearest to generated ones. Has the model learnt the data, or learnt them by heart?

A sample that is a training image finds it at distance 0. Distances are Euclidean, in a feature space or between pixels
(8-bit levels), and say something only beside the usual one from a training image to the nearest other one. Plain images
are near to many others, copied or not; a copy is much nearer to one than to all others. So samples are ranked by their
distance to the nearest real image over that to the second nearest, and called copies if it is below 1/3 (Yoon et al.
2023, "Diffusion probabilistic models generalize when they fail to memorize").
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lightning.data.loader import image_batches
from diffusion_lightning.data.tensor_images import ImageSet
from diffusion_lightning.images import figure_picture
from diffusion_lightning.progress import watched
from diffusion_lightning.randomness import draw_some

BLOCK = 2000
"""Candidates looked at at once."""

PART = 256
"""Queries looked for at once."""

COPY = 1 / 3
"""The ratio below which a sample is called a copy."""

GAP, LINE = 0.4, 0.25
"""Of the picture, in widths of an image: between its blocks, and a line of text."""

PROBES = 200
"""Training images that the usual distance is the median of, drawn by the seed."""


@dataclass(frozen=True)
class Nearest:
    """The nearest real images of R samples in one space.

    Attributes:
        distances: ``(R, k)``, rising.
        indices: of the real images, ``(R, k)``.
        usual: median distance from a real image to the nearest other one.
    """

    distances: Tensor
    indices: Tensor
    usual: float


@dataclass(frozen=True)
class Neighbours:
    """Those samples that are most like copies, with their nearest real images.

    Attributes:
        ratios: of all N samples, in feature space: distance to the nearest real image over that to the second nearest.
        samples: the R of the smallest ratios, rising, uint8 ``(R, C, H, W)``.
        in_features: their nearest real images.
        in_pixels: the same by pixels.
    """

    ratios: Tensor
    samples: Tensor
    in_features: Nearest
    in_pixels: Nearest

    @property
    def copies(self) -> int:
        """How many of all samples are."""
        return int((self.ratios < COPY).sum())


def nearest(queries: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest candidates of each query, by Euclidean distance in float64; of equal things it is exactly 0.

    Args:
        queries: ``(Q, …)``.
        batches: the candidates, ``(B, …)`` each.
        k: how many.

    Returns:
        Distances ``(Q, k)``, rising, and the candidates' places in the order of the batches ``(Q, k)``.

    Raises:
        ValueError: if there are fewer than k candidates.
    """
    queries = queries.flatten(1).double()
    distances = queries.new_full((len(queries), k), math.inf)
    indices = torch.zeros(len(queries), k, dtype=torch.int64)
    first = 0
    for batch in batches:
        block = batch.flatten(1).to(queries)
        for part in range(0, len(queries), PART):
            rows = slice(part, part + PART)
            # by products, which is fast and rounds; then those few by differences, which does not
            near = torch.cdist(queries[rows], block).topk(min(k, len(block)), largest=False).indices
            exact = (queries[rows, None] - block[near]).norm(dim=-1)
            sorted_, order = torch.cat((distances[rows], exact), 1).sort(dim=1, stable=True)
            distances[rows] = sorted_[:, :k]
            indices[rows] = torch.cat((indices[rows], first + near), 1).gather(1, order[:, :k])
        first += len(block)
    if first < k:
        raise ValueError(f"k={k}: there are only {first} candidates")
    return distances, indices


def find_neighbours(
    samples: Tensor,
    features: Tensor,
    images: ImageSet,
    real_features: Tensor,
    rows: int = 8,
    k: int = 5,
    seed: int = 0,
    progress: bool = False,
    workers: int = 0,
) -> Neighbours:
    """The nearest real images of those samples that are most like copies.

    Args:
        samples: uint8 ``(N, C, H, W)``.
        features: theirs, ``(N, F)``.
        images: the real images, as a data module holds them.
        real_features: theirs, ``(M, F)``.
        rows: how many samples; all if there are fewer.
        k: how many neighbours of each; all if there are fewer.
        seed: decides which real images the usual distance is of.
        progress: show bars.
        workers: processes that read the real images beside this one.
    """
    k = min(k, len(real_features))

    def candidates(pixels: bool, what: str) -> Iterator[Tensor]:
        batches = image_batches(images, workers=workers) if pixels else iter(real_features.split(BLOCK))
        return watched(batches, total=len(real_features), desc=what, unit="image", disable=not progress)

    closest, second = nearest(features, candidates(False, "nearest of all samples"), 2)[0].T
    ratios = torch.where(closest > 0, closest / second, 0.0)  # an image that the data hold twice can be copied too
    chosen = ratios.argsort(stable=True)[:rows]
    probes = draw_some(PROBES, len(real_features), seed)
    spaces = []
    for queries, probe, pixels in (
        (features[chosen], real_features[probes], False),
        (samples[chosen], images[probes][0], True),
    ):
        what = "nearest in pixels" if pixels else "nearest in features"
        # probes and samples at once: the images may have to be read from disk
        both = torch.cat((queries, probe))
        found, where = nearest(both, candidates(pixels, what), max(k, 2))
        usual = found[len(chosen) :, 1].median().item()  # the nearest is the probe itself
        spaces.append(Nearest(found[: len(chosen), :k], where[: len(chosen), :k], usual))
    return Neighbours(ratios, samples[chosen], *spaces)


def neighbours_picture(neighbours: Neighbours, images: ImageSet) -> Tensor:
    """Rows of a sample, its nearest real images in feature space, and those in pixels, with distances; uint8 (3, H, W).

    Args:
        neighbours: of R samples.
        images: the real images.
    """
    from matplotlib.figure import Figure

    rows, k = neighbours.in_features.indices.shape
    width, height = 2 * (k + GAP) + 1, (1 + LINE) * rows + 3 * LINE
    figure = Figure(figsize=(0.9 * width, 0.9 * height), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))  # one for all: to arrange as many as there are images takes seconds
    panel.set_axis_off()

    def show(images: Tensor, left: float, row: int, texts: Iterable[str] = ()) -> None:
        top = (1 + LINE) * row + 2 * LINE
        for column, image in enumerate(images):
            picture = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
            at = left + column
            panel.imshow(picture, interpolation="nearest", extent=(at + 0.03, at + 0.97, top + 0.97, top + 0.03))
        for column, text in enumerate(texts):
            panel.text(left + column + 0.5, top + 1 + LINE / 3, text, ha="center", va="center", fontsize=8)

    panel.text(0.5, 0.8 * LINE, "sample", ha="center", va="center", fontsize=9)
    for row, sample in enumerate(neighbours.samples):
        show(sample[None], 0, row)
    for block, (space, found) in enumerate((("features", neighbours.in_features), ("pixels", neighbours.in_pixels))):
        left = (1 + GAP) + block * (k + GAP)
        title = f"nearest in {space}\nusual between real images: {found.usual:.4g}"
        panel.text(left + k / 2, 0.8 * LINE, title, ha="center", va="center", fontsize=9)
        for row, (distances, indices) in enumerate(zip(found.distances, found.indices, strict=True)):
            show(images[indices.tolist()][0], left, row, [f"{distance:.4g}" for distance in distances.tolist()])
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    return figure_picture(figure)
