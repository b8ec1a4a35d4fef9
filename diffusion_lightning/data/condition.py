"""What data tell of each example besides its label, or instead of it: columns of their metadata, the picture itself
made small, or which of the groups that the pictures fall into it is of."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffusion_lightning.data.arguments import check_at_least


@dataclass(frozen=True)
class ConditionSource:
    """Where the conditions of a data set come from, at least one of the three.

    Args:
        columns: of the metadata beside the pictures. Those of numbers make a vector, in this order; one of words makes
            the classes.
        downsample: f; the condition is the picture made small, the average of each f × f of its pixels.
        clusters: k; the network is told which of k groups of pictures alike a picture is of, and they are found without
            any label (:mod:`~diffusion_lightning.data.clusters`). Its ``num_classes`` is then k.
        within_classes: whether each class is divided into so many groups, so that samples can be asked for by classes;
            the network's ``num_classes`` is then k times those of the data.

    Raises:
        ValueError: if none is given, or one is out of its range.
    """

    columns: list[str] | None = None
    downsample: int | None = None
    clusters: int | None = None
    within_classes: bool = False

    def __post_init__(self) -> None:
        if self.columns is None and self.downsample is None and self.clusters is None:
            raise ValueError(
                "data.condition: give columns of the metadata, downsample or clusters, or null for no condition"
            )
        if self.columns is not None:
            columns = self.columns
            if isinstance(columns, str) or not columns or len({*columns}) < len(columns):
                raise ValueError(f"data.condition.columns={columns!r}: must be a list of different names")
        if self.downsample is not None:
            check_at_least(2, downsample=self.downsample)
        if self.within_classes and self.clusters is None:
            raise ValueError("data.condition.within_classes=True: give clusters, of each class, or leave it out")
        if self.clusters is not None:
            check_at_least(2, clusters=self.clusters)
            if self.columns is not None:
                raise ValueError(
                    f"data.condition.clusters={self.clusters}: columns={self.columns} tell of the pictures already: "
                    "leave one out"
                )

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
