r"""Does a sample show what was asked for, and can it be read at all? A classifier of the data's own classes answers.

For logits ℓ of N images, of which the i-th was to be of class yᵢ, p(c | i) = softmax(ℓᵢ)_c:

- agreement, the share of images with argmax_c p(c | i) = yᵢ;
- legible, the share of images with max_c p(c | i) ≥ 0.9; of images that nothing was asked of, this alone.

The standard error of a share p is √(p(1−p)/N). Neither is 1 for real images, which people cannot always read either:
what a share is worth is seen beside that of held-out ones. A Fréchet distance does not know what was asked for, so that
samples whose classes are exchanged have the same, and a few that nobody can read hardly move the moments of a thousand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.conditions import by_name
from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.data.tensor_images import ImageSet
from diffusion_lightning.images import figure_picture
from diffusion_lightning.randomness import draw_some

LEGIBLE = 0.9
"""The probability of its most likely class from which on an image can be read."""

HELD_OUT = 2000
"""Real images that stand beside the samples, drawn by the seed; all if there are fewer."""

WORST = 64
"""Samples in the picture of those that the classifier is least sure of."""

ACROSS, CAPTION = 8, 0.3
"""Of that picture: images in a row, and a line of text, in widths of an image."""

BATCH = 500


@dataclass(frozen=True)
class Agreement:
    """How many of ``num`` images are legible and, unless nothing was asked of them, show what was asked for."""

    num: int
    legible: int
    agreeing: int | None = None

    @classmethod
    def of(cls, counts: Tensor, asked: bool) -> "Agreement":
        """That of the sum of `tally` over all images, which were asked for by their classes or not."""
        num, legible, agreeing = counts.tolist()
        return cls(num, legible, agreeing if asked else None)

    @property
    def shares(self) -> dict[str, float]:
        """``agreement`` and ``legible``, or ``legible`` alone."""
        found = {"agreement": self.agreeing, "legible": self.legible}
        return {name: hits / self.num for name, hits in found.items() if hits is not None}

    @property
    def errors(self) -> dict[str, float]:
        """The shares' standard errors, ``agreement_error`` and ``legible_error``."""
        return {f"{name}_error": math.sqrt(p * (1 - p) / self.num) for name, p in self.shares.items()}


def tally(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """How many images there are, are legible, and show what was asked for; sums of it are those of all batches.

    Args:
        logits: ``(N, C)``.
        labels: the classes asked for, ``(N,)`` on the same device; None if nothing was.

    Returns:
        int64 ``(3,)``, where the logits are, the last 0 without labels. Nothing waits for the device.
    """
    largest, read = logits.log_softmax(1).max(1)
    legible = (largest >= math.log(LEGIBLE)).sum()
    agreeing = torch.zeros_like(legible) if labels is None else (read == labels).sum()
    return torch.stack((torch.full_like(legible, len(logits)), legible, agreeing))


@torch.no_grad()
def tally_held_out(
    network: Any,
    images: ImageSet,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    groups: Groups | None = None,
) -> Tensor:
    """`tally` of ``HELD_OUT`` real images and their labels: this process's part of it, where it is computed.

    Args:
        network: feature network whose ``logits`` are those of the data's classes.
        images: held-out ones, as a data module holds them.
        seed: decides which.
        device: where the network is.
        rank: of this process.
        world_size: number of processes, whose sum is the whole.
        groups: what the labels are, if not classes.
    """
    chosen = draw_some(HELD_OUT, len(images), seed)[rank::world_size].tolist()  # type: ignore[arg-type]
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for first in range(0, len(chosen), BATCH):
        batch, condition = images[chosen[first : first + BATCH]]
        labels = by_name(condition)["labels"].to(device)
        labels = labels if groups is None else groups.class_of(labels)
        counts += tally(network.logits(network(batch.to(device))), labels)
    return counts


def least_sure(logits: Tensor, labels: Tensor | None = None, most: int = WORST) -> tuple[Tensor, Tensor]:
    """Which images show least what was asked for: those of the lowest p(yᵢ | i), or of the lowest largest p.

    Args:
        logits: ``(N, C)``.
        labels: the classes asked for, ``(N,)``; None if nothing was.
        most: how many; all if there are fewer.

    Returns:
        Their indices, and these probabilities, rising, float64.
    """
    probabilities = logits.double().softmax(1)
    sure = probabilities.max(1).values if labels is None else probabilities.gather(1, labels[:, None])[:, 0]
    sorted_, order = sure.sort(stable=True)
    return order[:most], sorted_[:most]


def worst_picture(images: Tensor, logits: Tensor, labels: Tensor | None, classes: Sequence[str]) -> Tensor:
    """Those images that show least what was asked for, with what that was and what is read; uint8 ``(3, H, W)``.

    Args:
        images: uint8 ``(N, C, H, W)``, C = 1 or 3.
        logits: theirs, ``(N, K)``.
        labels: the classes asked for, ``(N,)``; None if nothing was.
        classes: names of the K classes.
    """
    from matplotlib.figure import Figure

    chosen, sure = least_sure(logits, labels)
    read = logits[chosen].argmax(1).tolist()
    asked = None if labels is None else labels[chosen].tolist()
    title = "read, and its probability" if asked is None else "asked for → read, and the probability of what was asked"
    rows, columns = math.ceil(len(chosen) / ACROSS), min(ACROSS, len(chosen))
    width, height = max(columns, 4), (1 + CAPTION) * rows + 2 * CAPTION
    figure = Figure(figsize=(width, height), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))  # one for all: to arrange as many as there are images takes seconds
    panel.set_axis_off()
    panel.text(width / 2, CAPTION, title, ha="center", va="center", fontsize=9)
    for place, image in enumerate(images[chosen]):
        left, top = place % ACROSS, (1 + CAPTION) * (place // ACROSS) + 2 * CAPTION
        picture = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        panel.imshow(picture, interpolation="nearest", extent=(left + 0.03, left + 0.97, top + 0.97, top + 0.03))
        shown = classes[read[place]] if asked is None else f"{classes[asked[place]]} → {classes[read[place]]}"
        at = (left + 0.5, top + 1 + CAPTION / 2)
        panel.text(*at, f"{shown}   {sure[place].item():.2g}", ha="center", va="center", fontsize=8)
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    return figure_picture(figure)
