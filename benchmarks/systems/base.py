"""The interface of a system that learns from digits and draws some."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.datasets import MNIST

Save = Callable[[Path], None]
"""Writes all that a training needs to go on, and what samples are drawn by, to a file."""

Watch = Callable[[int, Save], bool]
"""Called after every optimizer step with the number of steps so far; whether there shall be another."""


def digits(root: str, train: bool = True) -> Tensor:
    """MNIST as uint8 ``(N, 1, 28, 28)``."""
    return MNIST(root, train=train).data.unsqueeze(1)


def classes(root: str, train: bool = True) -> Tensor:
    """What these digits are, int64 ``(N,)``."""
    return MNIST(root, train=train).targets


class System(ABC):
    """A network and its training.

    Args:
        root: folder of the digits, in torchvision's layout.
        steps: how many optimizer steps are planned, for learning rates that follow a schedule.
    """

    name: str
    settings: str
    """How it is set, in words."""
    batch_size: int
    has_classes = False
    """Whether it is told what the digits are, and draws those that it is asked for."""
    is_scheduled: bool
    """Whether its learning rate falls by a schedule, so that a longer training is another one from the start."""
    most_evaluations = 50
    """Of its network, for one sample: a sampler that needs more is not its best."""

    def __init__(self, root: str, steps: int) -> None:
        self.root = root
        self.steps = steps

    @abstractmethod
    def train(self, watch: Watch, folder: Path, start: Path | None = None) -> None:
        """Train until ``watch`` answers no: from ``start``, which it has saved, or from nothing; ``folder`` is its."""

    @classmethod
    @abstractmethod
    def parameters_of(cls, path: Path) -> int:
        """The number of trainable weights of what was saved."""

    @classmethod
    @abstractmethod
    def samplers(cls) -> Mapping[str, Any]:
        """Those among which the best is looked for, by their names."""

    @classmethod
    @abstractmethod
    def sample(
        cls, path: Path, num: int, batch_size: int, sampler: str, labels: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Draw by what was saved, with the averaged weights where there are any.

        Args:
            path: of what was saved.
            num: how many.
            batch_size: at a time.
            sampler: the name of one of :meth:`samplers`.
            labels: which classes, ``(num,)``, of a system that has some.

        Returns:
            ``(num, 1, 28, 28)`` in [-1, 1], and how often the network was evaluated for one of them, counted.
        """


@contextlib.contextmanager
def images_through(module: nn.Module) -> Iterator[list[int]]:
    """How many images each call of the module gets meanwhile."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()
