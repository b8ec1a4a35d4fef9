"""Graded damages of real digits, by which features are judged: a distance that sees must grow with each.

Those of `PICTURES` change every picture; those of `SETS` change which pictures there are, and take what is known of
each, be it a picture or its features. Features that are trained to mind broken digits are trained on the breakage of
``breakage.py``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Damage(NamedTuple):
    """A damage: what does it, what its grades are, in words, and the grades, the mildest first."""

    apply: Callable[..., Tensor]
    unit: str
    grades: tuple[float, ...]


def erased(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That share of each digit's brightness is gone: the pixels nearest to one of its own, drawn by brightness."""
    size = x.shape[-1]
    flat = x.flatten(1)
    place = torch.multinomial(flat, 1, generator=generator)
    index = torch.arange(size * size)
    away = ((index // size - place // size) ** 2 + (index % size - place % size) ** 2).float()
    order = (away + torch.rand(away.shape, generator=generator)).argsort(1)  # ties by chance
    ink = flat.gather(1, order)
    before = ink.cumsum(1) - ink
    left = (share * ink.sum(1, keepdim=True) - before).clamp(min=0)  # to be taken from this pixel on
    return flat.scatter(1, order, ink - torch.minimum(ink, left)).view_as(x)


def elastic(x: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Every pixel is read that far away, root mean square, in directions that change over some three pixels."""
    size = x.shape[-1]
    wide = torch.randn(len(x), 2, size + 12, size + 12, generator=generator)
    field = _smooth(wide, 2.0)[..., 6:-6, 6:-6]
    field = pixels * field / field.square().sum(1, keepdim=True).mean((1, 2, 3), keepdim=True).sqrt()
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1) + field.permute(0, 2, 3, 1) * 2 / size
    return F.grid_sample(x, grid, align_corners=False)


def blended(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That share of the brightness is another digit's."""
    return (1 - share) * x + share * x[torch.randperm(len(x), generator=generator)]


def blurred(x: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Smoothed by a Gaussian of that standard deviation."""
    return _smooth(x, pixels)


def noisy(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of that standard deviation, in widths of the range, clipped."""
    return x + std * torch.randn(x.shape, generator=generator)


def thicker(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That far on the way to the brightest of each pixel's 3 × 3."""
    return x + share * (F.max_pool2d(x, 3, 1, 1) - x)


def thinner(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """That far on the way to the darkest of each pixel's 3 × 3."""
    return x + share * (-F.max_pool2d(-x, 3, 1, 1) - x)


def _smooth(x: Tensor, std: float) -> Tensor:
    """By a Gaussian, with nothing outside of the frame."""
    reach = math.ceil(3 * std)
    line = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * std**2))
    kernel = (line / line.sum()).view(1, 1, -1, 1).repeat(x.shape[1], 1, 1, 1)
    down = F.conv2d(x, kernel, padding=(reach, 0), groups=x.shape[1])
    return F.conv2d(down, kernel.mT, padding=(0, reach), groups=x.shape[1])


PICTURES = {
    "erased": Damage(erased, "of the stroke", (0.02, 0.05, 0.1, 0.2)),
    "elastic": Damage(elastic, "pixels", (0.5, 0.75, 1.0, 1.5)),
    "blended": Damage(blended, "of another digit", (0.05, 0.1, 0.2, 0.4)),
    "blurred": Damage(blurred, "pixels", (0.5, 0.75, 1.0, 1.5)),
    "noisy": Damage(noisy, "of the range", (0.05, 0.1, 0.2, 0.4)),
    "thicker": Damage(thicker, "of a pixel", (0.2, 0.4, 0.6, 0.8)),
    "thinner": Damage(thinner, "of a pixel", (0.2, 0.4, 0.6, 0.8)),
}
"""Of every picture: ``apply(x, grade, generator)``, x (N, 1, H, W) in [0, 1]."""


def left_out(rows: Tensor, labels: Tensor, num: int, classes: float, generator: torch.Generator) -> Tensor:
    """The first `num` rows without so many classes, from one drawn at random on; of half a class half of its rows."""
    first = int(torch.randint(10, (), generator=generator))
    keep = torch.ones(len(rows), dtype=torch.bool)
    for number in range(math.ceil(classes)):
        of_class = (labels == (first + number) % 10).nonzero()[:, 0]
        keep[of_class[torch.arange(len(of_class)) % 100 < 100 * min(classes - number, 1)]] = False
    return rows[keep][:num]


def repeated(rows: Tensor, labels: Tensor, num: int, share: float, generator: torch.Generator) -> Tensor:
    """The first `num` rows, of which that share is one and the same, another."""
    one = rows[int(torch.randint(num, len(rows), (), generator=generator))]
    copies = round(share * num)
    return torch.cat([one.expand(copies, *one.shape), rows[copies:num]])


SETS = {
    "left out": Damage(left_out, "classes", (0.5, 0.75, 1, 2)),
    "repeated": Damage(repeated, "of the pictures", (0.05, 0.1, 0.2, 0.4)),
}
"""Of a set: ``apply(rows, labels, num, grade, generator)``, more than ``num`` rows in random order, (N, …)."""


def replaced(rows: Tensor, others: Tensor, num: int, share: float) -> Tensor:
    """The first `num` rows, of which that share is taken from others."""
    count = round(share * num)
    return torch.cat([others[:count], rows[count:num]])


REPLACED = Damage(replaced, "of the pictures", (0.05, 0.1, 0.2, 0.4))
"""Of a set: ``apply(rows, others, num, grade)``, the others from somewhere else: a model's samples."""


def damaged(name: str, grade: float, images: Tensor, seed: int) -> Tensor:
    """Pictures of uint8 (N, 1, H, W), each damaged by `PICTURES` to a grade."""
    generator = torch.Generator().manual_seed(seed)
    x = PICTURES[name].apply(images.float() / 255, grade, generator)
    return (255 * x.clamp(0, 1)).round().byte()
