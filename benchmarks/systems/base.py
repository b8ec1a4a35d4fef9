"""The interface of a system that learns from digits and draws some."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import MNIST
from tqdm import tqdm


def digits(root: str, train: bool = True) -> Tensor:
    """MNIST as uint8 ``(N, 1, 28, 28)``."""
    return MNIST(root, train=train).data.unsqueeze(1)


class System(ABC):
    """A network and its training.

    Args:
        root: folder of the digits, in torchvision's layout.
        steps: how many optimizer steps are planned, for learning rates that follow a schedule.
    """

    name: str
    settings: str
    """How it is set, in words."""
    nfe: int
    """Network evaluations of one sample; of the last one, where a solver chooses them."""

    def __init__(self, root: str, steps: int) -> None:
        self.root = root
        self.steps = steps

    @abstractmethod
    def train(self, marks: Sequence[float], folder: Path) -> list[tuple[float, int]]:
        """Train until the last of the ``marks``, in seconds; save at each; return the seconds and steps at each."""

    @classmethod
    @abstractmethod
    def parameters_of(cls, path: Path) -> int:
        """The number of trainable weights of what was saved."""

    @classmethod
    @abstractmethod
    def sample(cls, path: Path, num: int, batch_size: int) -> Tensor:
        """``(num, 1, 28, 28)`` in [-1, 1] by what was saved, with the averaged weights where there are any."""


class Peer(System):
    """A system of another library, trained by the loop that its documentation shows."""

    batch_size: int

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.images = digits(root)

    @abstractmethod
    def step(self) -> None:
        """One optimizer step, and of the average of the weights, on one batch."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write down the state that :meth:`sample` reads."""

    @classmethod
    @abstractmethod
    def model(cls) -> nn.Module:
        """What was saved is the state of this."""

    @classmethod
    @abstractmethod
    def draw(cls, model: nn.Module, num: int) -> Tensor:
        """``(num, 1, 28, 28)``, about [-1, 1]."""

    @classmethod
    def parameters_of(cls, path: Path) -> int:
        return sum(p.numel() for p in cls.model().parameters() if p.requires_grad)

    @classmethod
    @torch.no_grad()
    def sample(cls, path: Path, num: int, batch_size: int) -> Tensor:
        model = cls.model().eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        sizes = [min(batch_size, num - first) for first in range(0, num, batch_size)]
        return torch.cat([cls.draw(model, size) for size in sizes]).clamp(-1, 1)

    def batch(self) -> Tensor:
        """The next images, uint8 ``(B, 1, 28, 28)``, drawn with replacement."""
        return self.images[torch.randint(len(self.images), (self.batch_size,))]

    def train(self, marks: Sequence[float], folder: Path) -> list[tuple[float, int]]:
        reached: list[tuple[float, int]] = []
        steps, began, saving = 0, time.perf_counter(), 0.0
        with tqdm(total=round(marks[-1]), desc=f"train {self.name}", unit="s") as bar:
            while len(reached) < len(marks):
                self.step()
                steps += 1
                seconds = time.perf_counter() - began - saving
                bar.update(min(round(seconds), bar.total) - bar.n)
                if seconds >= marks[len(reached)]:
                    self.save(folder / f"{len(reached)}.pt")
                    reached.append((seconds, steps))
                    saving = time.perf_counter() - began - seconds
        return reached
