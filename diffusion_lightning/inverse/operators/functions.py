"""Operators that are not linear, and any function."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.inverse.operators.base import Operator


class Quantize(Operator):
    """A x = the nearest of some evenly spread values from −1 to 1.

    Its derivative is taken to be 1 (straight-through; Bengio et al. 2013), where the true one is 0 almost everywhere.

    Args:
        levels: how many values, at least 2.

    Raises:
        ValueError: if there are fewer.
    """

    is_linear = False

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        if not (levels >= 2 and levels % 1 == 0):
            raise ValueError(f"levels={levels}: must be a whole number of at least 2")
        self.levels = int(levels)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.levels - 1
        nearest = ((x.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1
        return x + (nearest - x).detach()


class Clip(Operator):
    """A x = each value, or the nearest that was in range, as of a picture that is over-exposed.

    Args:
        low: the lowest value that is measured.
        high: the highest.

    Raises:
        ValueError: if they are not in that order.
    """

    is_linear = False

    def __init__(self, low: float = -0.5, high: float = 0.5) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low={low}, high={high}: the first must be below the second")
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class Function(Operator):
    """A x = any function of a batch, which torch can differentiate.

    Args:
        function: A, called with a batch ``(B, …)``; or its import path, such as ``package.module.function``.
        is_linear: whether it is; then its adjoint is found by differentiating it.
        shape: of one example; needed if it is linear, or what it makes has another shape.

    Raises:
        ValueError: if nothing can be imported from the path, or ``shape`` is needed and missing.
    """

    axes = None

    def __init__(
        self, function: str | Callable[[Tensor], Tensor], is_linear: bool = False, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if is_linear and shape is None:
            raise ValueError("shape: must be given for a linear function, such as shape=(1, 28, 28)")
        self.function: Callable[[Tensor], Tensor] = _imported(function) if isinstance(function, str) else function
        self.is_linear = is_linear
        self.shape = tuple(shape) if shape is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.is_linear:
            return super().adjoint(y)
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape_of(y), dtype=y.dtype, device=y.device, requires_grad=True)
            (product,) = torch.autograd.grad(self(x), x, y)
        return product

    def shape_of(self, y: Tensor) -> tuple[int, ...]:
        return self.shape if self.shape is not None else tuple(y.shape[1:])


def _imported(path: str) -> Callable[[Tensor], Tensor]:
    module, _, name = path.rpartition(".")
    try:
        found: Any = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"function={path!r}: cannot be imported ({error}): give package.module.function") from error
    if not callable(found):
        raise ValueError(f"function={path!r}: is {type(found).__name__}, no function")
    return found
