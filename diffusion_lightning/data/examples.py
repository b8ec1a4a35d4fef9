"""What data tell of their examples: shape and classes, which conditions there are, and the examples themselves."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_lightning.conditions import Condition, by_name
from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.data.order import BatchOrder, BatchSet
from diffusion_lightning.randomness import draw_some


class TellsOfExamples:
    """Two sets of examples, to train on and held out.

    Attributes:
        shape: of one example, known before the sets are made, as is all that follows.
        num_classes: labels are in [0, num_classes).
        class_names: of each class what it stands for; None where they have no names.
        groups: what the labels are, if not the data's own classes but groups found in the data; known with the sets.
        condition_dim: D of a vector (B, D); None if the condition holds none.
        vector_names: what its numbers are; None where they have no names.
        condition_channels: of a picture (B, C, …); None if the condition holds none.
        context_dim: D of tokens (B, L, D); None if the condition holds none.
    """

    shape: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None = None
    groups: Groups | None = None
    condition_dim: int | None = None
    vector_names: list[str] | None = None
    condition_channels: int | None = None
    context_dim: int | None = None

    @property
    @abstractmethod
    def _seed(self) -> int:
        """Decides all that the data draw."""

    @abstractmethod
    def sets(self) -> tuple[BatchSet, BatchSet]:
        """The training examples and the held-out ones, made at the first call and then kept."""

    def class_counts(self) -> list[int]:
        """How many training examples have each label from 0 on.

        They are counted in the set's ``labels``, int64 (N,); a set without such an attribute is read once. Where there
        are no labels all examples are of one class.

        Raises:
            ValueError: if the labels are no classes: not whole numbers from 0 on.
        """
        labels = self._of_training("labels")
        if labels is None:
            return [len(self.sets()[0])]  # type: ignore[arg-type]
        if labels.is_floating_point() or labels.ndim != 1 or labels.min() < 0:
            raise ValueError(f"{type(self).__name__}: its labels are no classes: must be whole numbers (N,) from 0 on")
        return torch.bincount(labels, minlength=self.num_classes).tolist()

    def vector_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the training examples' vectors, float32 (D,) of sums in float64.

        The deviation divides by N and is 0 where all are the same. They are of the set's ``vectors``, (N, D); a set
        without such an attribute is read once. Vectors with a NaN are none. None without any.
        """
        vectors = self._of_training("vector") if self.condition_dim is not None else None
        if vectors is None:
            return None
        vectors = vectors[~vectors.isnan().any(1)]
        if len(vectors) == 0:
            return None
        vectors = vectors.double()
        return vectors.mean(0).float(), vectors.std(0, correction=0).float()

    def examples(self, indices: Iterable[int], held_out: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch as a network would get it, unaugmented: x (B, …) and its conditions by name, on the CPU.

        Args:
            indices: in the set.
            held_out: of the held-out examples, or of those to train on.
        """
        examples: Any = self.sets()[1 if held_out else 0]
        x, condition = self._ready(*examples[[int(index) for index in indices]])
        return x, self._named(condition)

    def first_held_out(self, num: int) -> Tensor:
        """The indices of the first ``num`` held-out examples in the order that validation reads them, int64."""
        return draw_some(num, len(self.sets()[1]), self._seed)  # type: ignore[arg-type]

    def _ready(self, x: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
        """A batch of a set as a network gets it."""
        return x, condition

    def _named(self, condition: Condition) -> dict[str, Tensor]:
        """A batch's conditions by name; of one class alone the labels say nothing, and are left out."""
        return {name: value for name, value in by_name(condition).items() if name != "labels" or self.num_classes > 1}

    def _of_training(self, name: Literal["labels", "vector"]) -> Tensor | None:
        """That condition of all training examples; None if they have none."""
        examples = self.sets()[0]
        held = getattr(examples, {"labels": "labels", "vector": "vectors"}[name], None)
        if held is not None:
            return held
        order = BatchOrder(len(examples), 500, shuffle=False, drop_last=False)  # type: ignore[arg-type]
        read = [by_name(examples[batch][1]).get(name) for batch in order]  # type: ignore[index]
        given = [part for part in read if part is not None]
        return torch.cat(given) if given else None
