"""Digits broken at random, for training features that mind it: each picture in one of several ways, more or less badly.

The damages of ``digit_damages.py``, by which features are judged, are others: nothing here blurs, adds noise to each
pixel, blends two whole digits or changes a whole digit's thickness; a hole is a bar, and a warp has another wavelength.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 28


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers between two, evenly."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def _places(x: Tensor, generator: torch.Generator) -> Tensor:
    """A pixel of each image (N, 1, 28, 28), drawn by its brightness: (N, 2), row and column."""
    index = torch.multinomial(x.flatten(1) + 1e-4, 1, generator=generator)[:, 0]
    return torch.stack([index // SIZE, index % SIZE], dim=1).float()


def _offsets(places: Tensor) -> tuple[Tensor, Tensor]:
    """How far each pixel is below and right of a place: two (N, 28, 28)."""
    line = torch.arange(SIZE, dtype=torch.float32)
    down, right = line[:, None] - places[:, :1, None], line - places[:, 1:, None]
    return down.expand(-1, -1, SIZE), right.expand(-1, SIZE, -1)


def _field(count: int, wavelength: int, generator: torch.Generator) -> Tensor:
    """Smooth noise (count, 2, 28, 28) of about unit variance, that changes over so many pixels."""
    coarse = torch.randn(count, 2, SIZE // wavelength + 2, SIZE // wavelength + 2, generator=generator)
    return 1.5 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def _moved(x: Tensor, by: Tensor) -> Tensor:
    """Each image (N, 1, 28, 28) read where `by` (N, 2, 28, 28), in pixels right and down, leads to."""
    line = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1) + by.permute(0, 2, 3, 1) * 2 / SIZE
    return F.grid_sample(x, grid, align_corners=False)


def _bar(x: Tensor, width: tuple[float, float], length: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Between 0 and 1, a straight bar at any angle through a bright pixel of each image: (N, 1, 28, 28)."""
    down, right = _offsets(_places(x, generator))
    count = len(x)
    angle = uniform(0, math.pi, (count, 1, 1), generator)
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    half_width = uniform(*width, (count, 1, 1), generator) / 2
    half_length = uniform(*length, (count, 1, 1), generator) / 2
    inside = (half_width + 0.5 - across.abs()).clamp(0, 1) * (half_length + 0.5 - along.abs()).clamp(0, 1)
    return inside[:, None]


def cut(x: Tensor, generator: torch.Generator) -> Tensor:
    """A bar across the stroke is dark."""
    return x * (1 - _bar(x, (0.6, 4), (4, 12), generator))


def faded(x: Tensor, generator: torch.Generator) -> Tensor:
    """A round part of the digit is fainter, softly."""
    down, right = _offsets(_places(x, generator))
    radius = uniform(1.5, 6, (len(x), 1, 1), generator)
    depth = uniform(0.3, 1, (len(x), 1, 1), generator)
    return x * (1 - depth * torch.exp(-(down**2 + right**2) / (2 * radius**2)))[:, None]


def joined(x: Tensor, generator: torch.Generator) -> Tensor:
    """A further piece of stroke begins on the digit."""
    start, end = _places(x, generator), _places(x, generator)
    end = end + 3 * torch.randn(end.shape, generator=generator)
    down, right = _offsets(start)
    step = end - start
    length = step.square().sum(1).clamp(min=1)[:, None, None]
    along = ((down * step[:, :1, None] + right * step[:, 1:, None]) / length).clamp(0, 1)
    away = ((down - along * step[:, :1, None]) ** 2 + (right - along * step[:, 1:, None]) ** 2).sqrt()
    thickness = uniform(0.5, 1.6, (len(x), 1, 1), generator)
    strength = uniform(0.4, 1, (len(x), 1, 1), generator)
    return torch.maximum(x, (strength * (thickness + 0.5 - away).clamp(0, 1))[:, None])


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """The stroke trembles: pixels are read beside where they belong, smoothly over five pixels."""
    strength = uniform(0.2, 1.2, (len(x), 1, 1, 1), generator)
    return _moved(x, strength * _field(len(x), 5, generator))


def slipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """What lies on one side of a line through the digit has slipped along it."""
    down, right = _offsets(_places(x, generator))
    angle = uniform(0, 2 * math.pi, (len(x), 1, 1), generator)
    side = ((down * angle.cos() - right * angle.sin()) > 0).float()
    far = side * uniform(1, 5, (len(x), 1, 1), generator)
    return _moved(x, torch.stack([far * angle.cos(), far * angle.sin()], dim=1))


def swapped(x: Tensor, generator: torch.Generator) -> Tensor:
    """A region of any shape is another digit's."""
    other = x[torch.randperm(len(x), generator=generator)]
    level = uniform(-1, 1, (len(x), 1, 1, 1), generator)
    wide = _field(len(x), 14, generator)[:, :1]
    mask = (4 * (wide - level)).sigmoid()
    return mask * x + (1 - mask) * other


def lumpy(x: Tensor, generator: torch.Generator) -> Tensor:
    """The stroke is thicker here and thinner there."""
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    field = uniform(0.2, 0.9, (len(x), 1, 1, 1), generator) * _field(len(x), 7, generator)[:, :1]
    share = field.clamp(-1, 1)
    return x + share.clamp(min=0) * (thick - x) + (-share).clamp(min=0) * (thin - x)


def speckled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gray clouds beside and over the stroke."""
    strength = uniform(0.1, 0.6, (len(x), 1, 1, 1), generator)
    cloud = (_field(len(x), 3, generator)[:, :1] - 0.7).clamp(min=0)
    near = F.avg_pool2d(x, 9, 1, 4).clamp(0, 0.3) / 0.3
    return (x + strength * cloud * near).clamp(0, 1)


WAYS = (cut, faded, joined, warped, slipped, swapped, lumpy, speckled)


def broken(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1], each broken in one way, and the ways' numbers, from 1 on, (N,)."""
    ways = torch.arange(len(x)) % len(WAYS) + 1
    out = x.clone()
    for number, way in enumerate(WAYS, 1):
        out[ways == number] = way(x[ways == number], generator)
    return out.clamp(0, 1), ways
