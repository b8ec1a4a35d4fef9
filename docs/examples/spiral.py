"""Data of one's own that are no images: two sets of whole batches, here of points."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from diffusion_lightning import BatchDataModule


class Spiral(BatchDataModule):
    """Points on a spiral that turns ``turns`` times around the origin on its way out to a distance of 1."""

    shape = (2,)
    num_classes = 1

    def __init__(self, num_points: int = 10000, turns: float = 2.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_points, self.turns = num_points, turns
        self._sets = self.draw(num_points, seed=0), self.draw(2000, seed=1)

    def sets(self) -> tuple[TensorDataset, TensorDataset]:
        """Those to train on, and those that are held out."""
        return self._sets

    def draw(self, n: int, seed: int) -> TensorDataset:
        distance = torch.rand(n, generator=torch.Generator().manual_seed(seed)).sqrt()
        angle = 2 * torch.pi * self.turns * distance
        points = distance[:, None] * torch.stack((angle.cos(), angle.sin()), 1)
        return TensorDataset(points, torch.zeros(n, dtype=torch.int64))

    @property
    def held_out(self) -> Tensor:
        """What `VectorField` and `SlicedWasserstein` compare samples with."""
        return self.sets()[1].tensors[0]
