"""What data tell of each example besides its label: columns of their metadata, or the picture itself, made small."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffusion_lightning.data.arguments import check_at_least


@dataclass(frozen=True)
class ConditionSource:
    """Where the conditions of a data set come from, at least one of the two.

    Args:
        columns: of the metadata beside the pictures. Those of numbers make a vector, in this order; one of words makes
            the classes.
        downsample: f; the condition is the picture made small, the average of each f × f of its pixels.

    Raises:
        ValueError: if neither is given, or one is out of its range.
    """

    columns: list[str] | None = None
    downsample: int | None = None

    def __post_init__(self) -> None:
        if self.columns is None and self.downsample is None:
            raise ValueError("data.condition: give columns of the metadata or downsample, or null for no condition")
        if self.columns is not None:
            columns = self.columns
            if isinstance(columns, str) or not columns or len({*columns}) < len(columns):
                raise ValueError(f"data.condition.columns={columns!r}: must be a list of different names")
        if self.downsample is not None:
            check_at_least(2, downsample=self.downsample)

    def check_sides(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError that names the possible factors if pictures ``(C, H, W)`` cannot be made small."""
        factor, sides = self.downsample, shape[1:]
        if factor is None or not any(side % factor for side in sides):
            return
        possible = [n for n in range(2, min(sides) + 1) if not any(side % n for side in sides)]
        right = f"one of {', '.join(map(str, possible))}" if possible else "no factor does"
        raise ValueError(f"data.condition.downsample={factor}: must divide the sides of the pictures, {shape}: {right}")


def downsampled(x: Tensor, factor: int) -> Tensor:
    """The averages of ``factor`` × ``factor`` pixels: ``(B, C, H, W)`` to ``(B, C, H / factor, W / factor)``."""
    return F.avg_pool2d(x, factor)
