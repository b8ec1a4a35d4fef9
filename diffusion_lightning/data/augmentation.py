r"""Non-leaky augmentation: training images are transformed, the network is told how, and samples are as the data are.

With probability p each, independently of one another, an image is turned upside down (every second of those chosen),
scaled, rotated, stretched and shifted, in this order; mirrored left to right it is with probability ½ whatever p. The
network is given the transformation's nine numbers, zero where nothing was done:

============ ===================== ==================================================================== ==============
mirrored     m = 1 with prob. ½    x ↦ −x                                                               m
upside down  v = 1                 y ↦ −y                                                               v
scaled       w ~ N(0, 1)           by 2^{w/5}                                                           w
rotated      φ ~ U(−π, π)          counterclockwise by φ                                                cos φ − 1, sin φ
stretched    w ~ N(0, 1)           by 2^{w/5} along the direction r, by 2^{−w/5} across it;             w cos r, w sin r
                                   r ~ U(−π, π) or, every second time, 0
shifted      d ~ N(0, 1)²          right and down by d/8 of the width and the height                    d
============ ===================== ==================================================================== ==============

So it learns the data at zero, and all else on the side. From: Karras et al. 2022 (arXiv:2206.00364, with
the settings for CIFAR-10), after Karras et al. 2020 (arXiv:2006.06676) and Jun et al. 2020 (ICML, "Distribution
Augmentation for Generative Modeling").

All that is not a flip is done by one bicubic resampling, the images continued by reflection about their outermost
pixels. The paper samples bilinearly between wavelet filters at twice the resolution; here there is no filter, and thus
slight aliasing in the few images that are shrunk by much.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DOUBLINGS = 0.2
"""One standard deviation of scaling or stretching, in octaves."""
SHIFT = 0.125
"""One standard deviation of shifting, in widths and heights."""


class Transformations(NamedTuple):
    """One transformation for each of B images; the numbers are those of the table above."""

    mirrored: Tensor
    """bool ``(B,)``."""
    upside_down: Tensor
    """bool ``(B,)``."""
    scale: Tensor
    """``(B,)``, as are the next three."""
    rotation: Tensor
    stretch: Tensor
    direction: Tensor
    shift: Tensor
    """``(B, 2)``: right, down."""

    @property
    def labels(self) -> Tensor:
        """What the network is told, ``(B, 9)``."""
        told = (
            self.mirrored,
            self.upside_down,
            self.scale,
            self.rotation.cos() - 1,
            self.rotation.sin(),
            self.stretch * self.direction.cos(),
            self.stretch * self.direction.sin(),
            *self.shift.unbind(1),
        )
        return torch.stack([number.to(self.scale.dtype) for number in told], dim=1)

    def __call__(self, images: Tensor) -> Tensor:
        """The images ``(B, C, H, W)``, transformed; exactly themselves where nothing is to be done."""
        images = torch.where(self.mirrored[:, None, None, None], images.flip(3), images)
        images = torch.where(self.upside_down[:, None, None, None], images.flip(2), images)
        grid = self._sources(*images.shape[2:])
        dtype = torch.promote_types(images.dtype, grid.dtype)
        resampled = F.grid_sample(images.to(dtype), grid.to(dtype), "bicubic", "reflection", align_corners=True)
        moving = torch.column_stack((self.scale, self.rotation, self.stretch, self.shift)) != 0
        return torch.where(moving.any(1)[:, None, None, None], resampled.to(images.dtype), images)

    def _sources(self, height: int, width: int) -> Tensor:
        """Where in the image each pixel of the result comes from, ``(B, H, W, 2)``, both axes in [-1, 1].

        A point is the complex number x + iy with the origin in the image's centre and y downwards, and the steps are
        undone from the last to the first. Products of matrices would be done in bf16 under autocast.
        """
        numbers = self.scale, self.rotation, self.stretch, self.direction, *self.shift.unbind(1)
        scale, rotation, stretch, direction, right, down = (number[:, None, None] for number in numbers)
        x, y = (torch.arange(side, device=scale.device) - (side - 1) / 2 for side in (width, height))
        x, y = torch.broadcast_tensors(x - SHIFT * width * right, y[:, None] - SHIFT * height * down)
        points = torch.complex(x, y)
        points = points * torch.polar(torch.ones_like(direction), direction)
        factor = (DOUBLINGS * stretch).exp2()
        points = torch.complex(points.real / factor, points.imag * factor)
        points = points * torch.polar((-DOUBLINGS * scale).exp2(), rotation - direction)
        return torch.stack((points.real / max((width - 1) / 2, 0.5), points.imag / max((height - 1) / 2, 0.5)), dim=-1)


class GeometricAugmentation:
    """Draws a transformation for every image of a batch, by a generator on the images' device.

    Args:
        probability: p, of each kind of transformation but mirroring, in [0, 1]; 0 turns mirroring off, too.

    Raises:
        ValueError: if ``probability`` is out of range.
    """

    dim = 9
    """How many numbers the network is told of each image."""

    def __init__(self, probability: float = 0.12) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability}: must be in [0, 1]")
        self.probability = probability

    def __call__(self, images: Tensor, seed: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Transform a batch.

        Args:
            images: ``(B, C, H, W)``, floating; every ``world_size``-th of a larger batch, beginning with the
                ``rank``-th.
            seed: decides what is done to the images of that batch; nothing else does.
            rank: of the process that has these images.
            world_size: number of processes.

        Returns:
            The images, and the labels ``(B, 9)``.
        """
        drawn = self.draw(len(images) * world_size, torch.Generator(images.device).manual_seed(seed))
        own = Transformations(*(number[rank::world_size] for number in drawn))
        return own(images), own.labels

    def draw(self, n: int, generator: torch.Generator) -> Transformations:
        """``n`` transformations, on the generator's device."""
        device = generator.device
        chosen = torch.rand(5, n, generator=generator, device=device) < self.probability
        upside_down, scaled, rotated, stretched, shifted = chosen
        coins = torch.rand(3, n, generator=generator, device=device) < 0.5
        turn, angle = math.pi * (2 * torch.rand(2, n, generator=generator, device=device) - 1)
        normal = torch.randn(4, n, generator=generator, device=device)
        return Transformations(
            mirrored=coins[0] & (self.probability > 0),
            upside_down=upside_down & coins[1],
            scale=normal[0] * scaled,
            rotation=turn * rotated,
            stretch=normal[1] * stretched,
            direction=angle * coins[2],
            shift=(normal[2:] * shifted).T,
        )
