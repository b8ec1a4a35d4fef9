"""A system of another library, trained by the loop that its documentation shows, or by our recipe in that loop."""

import copy
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from systems import our_training
from systems.base import System, Watch, classes, digits, images_through


class Peer(System):
    """What is saved of one is the state of everything it has that has a state, and its averaged weights.

    Class attributes of a variant:
        by_our_recipe: whether optimizer, learning rate, batch size and average are those of ``configs/mnist.yaml``; the
            network and its loss stay the library's.
    """

    by_our_recipe = False
    bf16 = True
    optimizer: torch.optim.Optimizer
    rate: Any = None
    """The learning rate's schedule, if there is one."""

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.images, self.labels = digits(root), classes(root)
        self.network = self.model()
        if self.by_our_recipe:
            self.optimizer, self.rate, self.average = our_training.build(self.network, steps)
        else:
            self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Make ``optimizer``, and what else its documentation trains with."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a batch, uint8 ``(B, 1, 28, 28)``; a peer without classes leaves the labels be."""

    @abstractmethod
    def update_average(self) -> None:
        """Take the weights after a step into their average."""

    @abstractmethod
    def averaged(self) -> nn.Module:
        """A network like ``network`` with the averaged weights."""

    @classmethod
    @abstractmethod
    def model(cls) -> nn.Module:
        """What is trained, with its first weights."""

    @classmethod
    def entrance(cls, model: nn.Module) -> nn.Module:
        """The module that an image goes through once in each evaluation."""
        return model

    @classmethod
    @abstractmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        """``(num, 1, 28, 28)``, about [-1, 1], by a value of :meth:`samplers`."""

    def step(self) -> None:
        """One optimizer step, and of the average of the weights, on one batch drawn with replacement."""
        chosen = torch.randint(len(self.images), (self.batch_size,))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.images[chosen], self.labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.rate is not None:
            self.rate.step()
        if self.by_our_recipe:
            self.average.update()
        else:
            self.update_average()

    def train(self, watch: Watch, folder: Path, start: Path | None = None) -> None:
        self.done = 0 if start is None else self._go_on(start)
        goes_on = True
        while goes_on:
            self.step()
            self.done += 1
            goes_on = watch(self.done, self.save)

    def save(self, path: Path) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        generator = torch.get_rng_state()
        averaged = self._averaged().state_dict()
        torch.save({"steps": self.done, "state": state, "generator": generator, "averaged": averaged}, path)

    def _averaged(self) -> nn.Module:
        if not self.by_our_recipe:
            return self.averaged()
        with self.average.average_parameters():
            return copy.deepcopy(self.network)

    def _parts(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if hasattr(part, "state_dict")}

    def _go_on(self, start: Path) -> int:
        saved = torch.load(start, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved["state"][name])
        torch.set_rng_state(saved["generator"])
        return saved["steps"]

    @classmethod
    def parameters_of(cls, path: Path) -> int:
        return sum(p.numel() for p in cls.model().parameters() if p.requires_grad)

    @classmethod
    @torch.no_grad()
    def sample(
        cls, path: Path, num: int, batch_size: int, sampler: str, labels: Tensor | None = None
    ) -> tuple[Tensor, float]:
        model, how = cls.model().eval(), cls.samplers()[sampler]
        model.load_state_dict(torch.load(path, weights_only=True)["averaged"])
        parts = [slice(first, min(first + batch_size, num)) for first in range(0, num, batch_size)]
        with images_through(cls.entrance(model)) as seen, torch.autocast("cpu", torch.bfloat16, enabled=cls.bf16):
            drawn = [
                cls.draw(model, part.stop - part.start, how, None if labels is None else labels[part]) for part in parts
            ]
        return torch.cat(drawn).float().clamp(-1, 1), sum(seen) / num
