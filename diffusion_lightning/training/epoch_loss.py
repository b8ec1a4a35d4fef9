"""The mean loss of an epoch, over all examples of all processes."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


class EpochLoss:
    """Adds up the finite losses of an epoch's batches on this process, and their examples."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # of losses, and of examples

    def forget(self) -> None:
        """Have nothing, not even the beginning of an epoch."""
        self._sums = None

    def begin(self, device: torch.device, anew: bool) -> None:
        """Begin with nothing: at the first batch of an epoch, or of a part of it that nothing is known before."""
        if anew or self._sums is None:
            self._sums = torch.zeros(2, device=device)

    def add(self, loss: Tensor, examples: int) -> None:
        """Add the mean ``loss`` of a batch, if it is finite."""
        assert self._sums is not None
        finite = loss.isfinite()
        self._sums += torch.where(finite, torch.stack((loss * examples, finite * examples)), 0.0)

    def mean(self, trainer: Trainer) -> Tensor:
        """Over all processes, each of which must ask."""
        assert self._sums is not None
        total, count = trainer.strategy.reduce(self._sums.clone(), reduce_op="sum")
        return total / count

    def write(self, module: LightningModule) -> list[list[float]]:
        """The sums of each process, for a checkpoint; every process must ask."""
        sums = self._sums if self._sums is not None else torch.zeros(2, device=module.device)
        return module.all_gather(sums).reshape(-1, 2).tolist()  # type: ignore[union-attr]

    def go_on(self, written: Sequence[Sequence[float]], module: LightningModule) -> None:
        """Go on from what :meth:`write` gave."""
        self._sums = own_part(written, module)


def own_part(of_processes: Sequence[Sequence[float]], module: LightningModule) -> Tensor:
    """This process's of the numbers that each process had; of another number of processes, the first takes all."""
    parts = torch.tensor(of_processes, device=module.device)
    if len(parts) == module.trainer.world_size:
        return parts[module.global_rank]
    return parts.sum(0) if module.global_rank == 0 else torch.zeros_like(parts[0])
