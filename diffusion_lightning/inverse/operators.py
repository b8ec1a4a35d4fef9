r"""What was measured: y = A(x0) + n, n ~ N(0, σ_y² I), with an operator A that is linear or not.

A linear operator has its adjoint beside it, ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, with which the methods solve for what is consistent
with a measurement. Operators are modules, so that their tensors move to a device with whatever holds them.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Operator(nn.Module, ABC):
    """A of y = A(x0) + n, for a batch: every example by itself."""

    is_linear = True
    """Whether A(a·x + b·x') = a·A(x) + b·A(x'), so that it has an adjoint."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), the batch first.

        Args:
            x: clean examples, ``(B, …)``.

        Raises:
            ValueError: for a shape that it cannot be applied to.
        """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, the batch first, of the shape of what is measured.

        Args:
            y: of the shape of measurements, ``(B, …)``.

        Raises:
            ValueError: for a shape that no measurement has, and if the operator is not linear.
        """

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y = Aᵀ(AAᵀ)⁻¹ y, the smallest x with A x = y, the batch first.

        Args:
            y: of the shape of measurements, ``(B, …)``.

        Raises:
            ValueError: as :meth:`adjoint` does.
        """

    def measure(self, x: Tensor, noise_std: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """A draw of y = A(x) + σ_y·z.

        Args:
            x: clean examples, ``(B, …)``.
            noise_std: σ_y, zero or above.
            generator: draws z.
        """
        y = self(x)
        z = torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        return y + noise_std * z

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), the batch first."""
        return super().__call__(x)


class Inpainting(Operator):
    """A x = m·x: what is known of a picture, and zero elsewhere. It is its own adjoint.

    Args:
        mask: m, true (or 1) where the picture is known: of the shape of one example, or of one that spreads to it, such
            as ``(H, W)``.

    Raises:
        ValueError: if the mask has values but 0 and 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask: must be true (1) where the picture is known and false (0) elsewhere")
        self.register_buffer("mask", mask.bool())

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, "x")
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        self._check(y, "y")
        return y * self.mask

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def _check(self, x: Tensor, name: str) -> None:
        example, mask = tuple(x.shape), tuple(self.mask.shape)
        if len(mask) > len(example) or any(m not in (1, n) for m, n in zip(mask[::-1], example[::-1], strict=False)):
            raise ValueError(f"mask: of shape {mask}, does not fit {name} of shape {example}")

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} known"


def check_linear(operator: Operator, method: str) -> None:
    """Raise a ValueError that says which methods do without, if a method needs a linear operator and has none."""
    if not operator.is_linear:
        raise ValueError(
            f"operator: {type(operator).__name__} is not linear, and {method} needs a linear one: DPS and TwistedSMC "
            "take any that has a gradient"
        )


def no_adjoint(operator: Operator) -> Any:
    """Raise the ValueError of an operator that is not linear."""
    raise ValueError(f"{type(operator).__name__}: is not linear, and has no adjoint")
