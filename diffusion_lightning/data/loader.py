"""The loader of batches in a `BatchOrder`, and the ends of the processes that read beside the training process."""

import atexit
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lightning.data.tensor_images import ImageSet

MOST_WORKERS = 8
"""More do not help: what is read waits for the network."""


def useful_workers(processes: int = 1) -> int:
    """How many workers to read files with: the CPUs that this process has for itself, at most 8.

    Args:
        processes: of the training on this machine. They share the CPUs that this process may use, unless SLURM has
            given each of its tasks some of its own.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tasks, of_each = (int(os.environ.get(f"SLURM_{name}") or 0) for name in ("NTASKS", "CPUS_PER_TASK"))
    are_own = tasks > 1 and usable <= of_each
    return min(usable if are_own else usable // processes, MOST_WORKERS)


class BatchLoader(DataLoader):
    """A `DataLoader` that asks its sampler for nothing until the first batch is wanted.

    When a run is resumed, Lightning makes the iterator before it has told the sampler which epoch it is; workers that
    prefetch at once would then load the wrong one. Its workers leave signals to the training process.
    """

    def __init__(self, dataset: Dataset, **kwargs: Any) -> None:
        super().__init__(dataset, **{"worker_init_fn": leave_signals, **kwargs})

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        if self.num_workers > 0:
            _iterators.add(iterator)
            started = zip(iterator._workers, iterator._index_queues, strict=True)  # type: ignore[attr-defined]
            _workers[:] = [*(pair for pair in _workers if _is_own(pair[0]) and pair[0].is_alive()), *started]
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Nothing, but its being here tells Lightning that an epoch can be continued in the middle.

        How far an epoch is, the training loop knows, not the loader, which reads ahead; a `ScoreModule` that is resumed
        sets the order's `start_batch`.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; see `state_dict`."""


def image_batches(
    images: ImageSet, size: int = 500, workers: int = 0, parts: Sequence[Sequence[int]] | None = None
) -> Iterator[Tensor]:
    """All images of a set in its order, uint8 ``(B, C, H, W)``.

    Args:
        images: the set.
        size: of a batch; the last one of a part may be smaller.
        workers: processes that read beside this one.
        parts: of the set, each by its indices, one after the other; all of it if left out.
    """
    order = _InOrder([range(len(images))] if parts is None else parts, size)  # type: ignore[arg-type]
    generator = torch.Generator()  # or it would take a draw from the global one
    for batch, _ in BatchLoader(images, batch_size=None, sampler=order, num_workers=workers, generator=generator):
        yield batch


class _InOrder:
    """Batches of indices, made as they are asked for: a million numbers are not held at once."""

    def __init__(self, parts: Sequence[Sequence[int]], size: int) -> None:
        self.parts, self.size = parts, size

    def __iter__(self) -> Iterator[list[int]]:
        for part in self.parts:
            for first in range(0, len(part), self.size):
                yield list(part[first : first + self.size])


def leave_signals(worker: int) -> None:
    """A terminal's Ctrl-C and a job's SIGTERM reach the workers too, which the training process needs to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of loaders that have workers."""

_workers: list[tuple[Any, Any]] = []
"""All of them, as processes, each with the queue that tells it to end.

A collection of garbage closes a queue before the iterator that it belongs to is asked to end its workers; they would
wait for ever, and the training process ten seconds for each. What is named here is no garbage.
"""


@atexit.register
def _end_workers() -> None:
    """Where an error keeps loaders alive to the process's end, Python would send their workers SIGTERM, and wait."""
    for iterator in list(_iterators):
        iterator._shutdown_workers()
    for worker, _ in _workers:
        if _is_own(worker) and worker.is_alive():
            worker.kill()


def _is_own(worker: Any) -> bool:
    """Whether this process started it, and not one that this was forked from."""
    return worker._parent_pid == os.getpid()
