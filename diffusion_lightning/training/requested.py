"""What samples are asked for where nobody says it: classes by shares, other conditions as in the data."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffusion_lightning.conditions import taken_by
from diffusion_lightning.randomness import draw_some
from diffusion_lightning.training.trained import DrawsSamples


def to_look_at(model: DrawsSamples, indices: Tensor, data: Any) -> dict[str, Tensor]:
    """The conditions of samples of these indices, by name and where the model is.

    The classes come in turn. If the model is told more, sample i gets the conditions of the i-th held-out example in
    the order that validation reads them, from the first one on again after the last; without data that have examples
    the model's :meth:`~diffusion_lightning.training.trained.DrawsSamples.default_conditions`.
    """
    if _is_told_classes_alone(model) or not hasattr(data, "first_held_out"):
        return model.default_conditions(indices)
    order = data.first_held_out(int(indices.max()) + 1)
    return model.asked_like(data.examples(order[indices.cpu() % len(order)].tolist())[1])


def to_compare(model: DrawsSamples, total: int, data: Any, seed: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """As :func:`to_look_at`, of ``total`` samples that are compared with the training examples: a function of indices.

    Each class has its share of the data. If the model is told more, the samples get the conditions of as many training
    examples, drawn by the seed without replacement, and over again if there are not so many.
    """
    if _is_told_classes_alone(model) or not hasattr(data, "first_held_out"):
        labels = model.labels_in_shares(total) if taken_by(model.network) else None
        return lambda indices: {} if labels is None else {"labels": labels[indices.to(labels.device)]}
    chosen = draw_some(total, len(data.sets()[0]), seed)

    def conditions(indices: Tensor) -> dict[str, Tensor]:
        return model.asked_like(data.examples(chosen[indices.cpu() % len(chosen)].tolist(), held_out=False)[1])

    return conditions


def _is_told_classes_alone(model: DrawsSamples) -> bool:
    return set(taken_by(model.network)) <= {"labels"}
