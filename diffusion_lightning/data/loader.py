"""The loader of batches in a `BatchOrder`, and the ends of the processes that read beside the training process."""

import atexit
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class BatchLoader(DataLoader):
    """A `DataLoader` that asks its sampler for nothing until the first batch is wanted.

    When a run is resumed, Lightning makes the iterator before it has told the sampler which epoch it is; workers that
    prefetch at once would then load the wrong one.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        if self.num_workers > 0:
            _iterators.add(iterator)
            _workers[:] = [worker for worker in _workers if worker.is_alive()] + iterator._workers  # type: ignore[attr-defined]
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Nothing, but its being here tells Lightning that an epoch can be continued in the middle.

        How far an epoch is, the training loop knows, not the loader, which reads ahead; a `ScoreModule` that is resumed
        sets the order's `start_batch`.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; see `state_dict`."""


def leave_signals(worker: int) -> None:
    """A terminal's Ctrl-C and a job's SIGTERM reach the workers too, which the training process needs to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of loaders that have workers."""

_workers: list[Any] = []
"""All of them, as processes."""


@atexit.register
def _end_workers() -> None:
    """Where an error keeps loaders alive to the end of the process, Python would send their workers SIGTERM, and wait.

    Some outlive even the orderly end of an iterator that a traceback held.
    """
    for iterator in list(_iterators):
        iterator._shutdown_workers()
    for worker in _workers:
        if worker._parent_pid == os.getpid() and worker.is_alive():
            worker.kill()
