"""What something is, and what to type for another, as messages say it."""

from typing import Any

from torch import Tensor, nn


def option(network: nn.Module, argument: str, value: int | None) -> str:
    """What to type to give a network's argument a value; a network of another library has its own names for them."""
    names = getattr(network, "argument_names", {}).get(argument, (argument,))
    return " ".join(f"--model.network.{name} {'null' if value is None else value}" for name in names)


def kind(value: Any) -> str:
    """What a value is, of a tensor its shape: ``a tensor (4, 1)``."""
    if isinstance(value, Tensor):
        return f"a tensor {dims(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


def dtype(value: Tensor) -> str:
    """Such as ``float32``."""
    return str(value.dtype).removeprefix("torch.")


def dims(value: Tensor) -> str:
    """A tensor's shape, as Python writes a tuple."""
    return f"({', '.join(map(str, value.shape))}{',' if value.ndim == 1 else ''})"
