"""What a model may be told of an example besides its noise: class labels, a vector, a picture, tokens, by these names.

================  ===================  ======================================
``labels``        int64 ``(B,)``       classes
``vector``        float ``(B, D)``     D numbers, such as measurements
``picture``       float ``(B, C, …)``  beside x, of any size
``tokens``        float ``(B, L, D)``  a sequence of vectors, such as a text's
================  ===================  ======================================

Of numbers NaN stands for what is not given: a vector or a picture with a NaN in it is none, and a token with a NaN is
padding. So one batch may hold examples with and without their condition, as the dropout of conditions and
classifier-free guidance need it. Of labels a network's ``null_class`` stands for none.
"""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

CONDITIONS = ("labels", "vector", "picture", "tokens")
"""The names of what a denoiser may be conditioned on, and can be asked without."""

ARGUMENTS = {
    "labels": "num_classes",
    "vector": "condition_dim",
    "picture": "condition_channels",
    "tokens": "context_dim",
}
"""By a condition's name what networks and data alike call its size: how many classes, numbers or channels."""

Condition: TypeAlias = Tensor | Mapping[str, Tensor]
"""Of a batch: a tensor, which is labels, a vector, a picture or tokens by its type and its axes, or several by name."""


def by_name(condition: Condition) -> dict[str, Tensor]:
    """The conditions of a batch by their names: of a tensor, int64 ``(B,)`` are labels, floats of two axes a vector, of
    three tokens, of four and more a picture.

    Raises:
        ValueError: for a name that is none of :data:`CONDITIONS`, or a tensor that is none of these.
    """
    if isinstance(condition, Tensor):
        if not condition.is_floating_point() and condition.dtype != torch.bool and condition.ndim == 1:
            return {"labels": condition}
        if condition.is_floating_point() and condition.ndim >= 2:
            return {{2: "vector", 3: "tokens"}.get(condition.ndim, "picture"): condition}
        kind = f"{str(condition.dtype).removeprefix('torch.')} {tuple(condition.shape)}"
        raise ValueError(
            f"a condition is {kind}: must be labels, int64 (B,), or floats: a vector (B, D), tokens (B, L, D) or a "
            "picture (B, C, H, W)"
        )
    if not isinstance(condition, Mapping):
        raise ValueError(f"a condition is of type {type(condition).__name__}: must be a tensor, or tensors by name")
    if unknown := [name for name in condition if name not in CONDITIONS]:
        raise ValueError(f"a condition has the name {unknown[0]!r}: must be one of {', '.join(CONDITIONS)}")
    return dict(condition)


def taken_by(network: nn.Module) -> tuple[str, ...]:
    """The names of the conditions that a network is told: its attribute ``conditions``, or, without that, the labels if
    it has ``num_classes``.
    """
    own = getattr(network, "conditions", None)
    return tuple(own) if own is not None else ("labels",) if getattr(network, "num_classes", None) else ()


def has_nulls(network: nn.Module, names: Collection[str] | None = None) -> bool:
    """Whether each of these conditions, of a network's own if left out, has one that stands for none; False of none."""
    names = taken_by(network) if names is None else names
    return bool(names) and ("labels" not in names or getattr(network, "null_class", None) is not None)


def null_of(network: nn.Module, conditions: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """For each of the conditions the one that stands for none, in its shape: the null class, and NaN.

    None if there are no conditions, or the network has no null class while there are labels.
    """
    null_class = getattr(network, "null_class", None)
    if not conditions or not conditions.keys() <= set(taken_by(network)) or not has_nulls(network, conditions):
        return None
    return {
        name: torch.full_like(value, null_class if name == "labels" else torch.nan)  # type: ignore[arg-type]
        for name, value in conditions.items()
    }
