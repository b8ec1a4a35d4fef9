"""The order of examples, a pure function of (seed, epoch): which batch holds which examples, on which rank.

A set of N examples is a map-style dataset whose item is a whole batch: `dataset[indices]` is `(x (B, …), condition)`.
`BatchOrder` is the sampler that yields those lists of indices.
"""

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from diffusion_lightning.conditions import Condition
from diffusion_lightning.randomness import Stream, derive_seed, draw_some

BatchSet: TypeAlias = Dataset[tuple[Condition, ...]]
"""A sized map-style dataset: `dataset[indices]` is `(x (B, …), condition)`, labels int64 (B,) or others by name."""


class BatchOrder(DistributedSampler[list[int]]):
    """The batches of one rank for one epoch, as lists of indices: a pure function of (seed, epoch, rank).

    Rank r of W takes every W-th index of the epoch's order, beginning with the r-th; no index is ever repeated to make
    ranks equal. It is a `DistributedSampler` because Lightning leaves those alone and calls their `set_epoch`.

    Attributes:
        epoch: the epoch whose order is yielded, set by `set_epoch`.
        start_batch: the first batch to yield, 0 unless an epoch is to be continued in the middle. It does not change
            `len()`, and the next new epoch sets it back to 0.

    Args:
        size: number of examples N over all ranks.
        batch_size: examples per batch and rank.
        shuffle: draw a new order for every epoch, or, ``"once"``, one for all epochs, instead of 0 … N−1.
        drop_last: leave out what does not fill a batch on every rank, so that all ranks have equally many batches of
            equal size, as DDP training needs. Where a rank's share is smaller than one batch, that share is the batch.
        seed: of the order.
        num_replicas: number of ranks W.
        rank: this rank r.

    Raises:
        ValueError: with `drop_last`, if there are fewer examples than ranks.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool | Literal["once"],
        drop_last: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(range(size), num_replicas, rank, bool(shuffle), seed, drop_last)  # type: ignore[arg-type]
        if drop_last and size < num_replicas:
            raise ValueError(f"{size} training images cannot feed {num_replicas} processes: each needs at least one")
        self.size = size
        self.once = shuffle == "once"
        self.batch_size = batch_size
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a change of epoch begins at its first batch."""
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches of a whole epoch on this rank."""
        if self.drop_last:
            return max(self.size // self.num_replicas // self.batch_size, 1)
        return math.ceil(len(range(self.rank, self.size, self.num_replicas)) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        if self.once:
            order = draw_some(self.size, self.size, self.seed)
        elif self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch, Stream.ORDER))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        share = order[self.rank :: self.num_replicas]
        if self.drop_last:
            share = share[: self.size // self.num_replicas]
        for batch in range(self.start_batch, len(self)):
            yield share[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class FixedBatchOrder(BatchOrder, SequentialSampler):  # type: ignore[misc]
    """A `BatchOrder` that Lightning keeps under `Trainer(overfit_batches=…)`, where it replaces all but these two."""


class Indices(Dataset[Tensor]):
    """The numbers 0 … N−1 as a dataset of whole batches, int64 (B,)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.as_tensor(indices)
