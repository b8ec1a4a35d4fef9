"""Masks by a word: which pixels of a picture are to be filled in."""

import torch
from torch import Tensor

WORDS = "left, right, top, bottom, center or random:0.5"


def missing_pixels(mask: str, size: tuple[int, int], seed: int = 0) -> Tensor:
    """What is to be filled in, ``(H, W)`` bool.

    Args:
        mask: left, right, top, bottom: that half; center: the middle, half as high and wide; random:p: each pixel with
            probability p.
        size: (height, width).
        seed: of the random one.

    Raises:
        ValueError: for another word, or a probability that is not between 0 and 1.
    """
    height, width = size
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    kind, _, share = mask.partition(":")
    match kind:
        case "left":
            missing = (columns < width // 2).expand(size)
        case "right":
            missing = (columns >= width - width // 2).expand(size)
        case "top":
            missing = (rows < height // 2).expand(size)
        case "bottom":
            missing = (rows >= height - height // 2).expand(size)
        case "center":
            inside = (rows >= height // 4) & (rows < height - height // 4)
            missing = inside & (columns >= width // 4) & (columns < width - width // 4)
        case "random":
            try:
                probability = float(share)
            except ValueError:
                probability = -1.0
            if not 0 < probability < 1:
                raise ValueError(f"mask={mask!r}: must be random: and a share between 0 and 1, such as random:0.5")
            missing = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < probability
        case _:
            raise ValueError(f"mask={mask!r}: must be {WORDS}")
    return missing.contiguous()
