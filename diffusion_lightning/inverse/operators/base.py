r"""What was measured: y = A(x0) + n, n ~ N(0, σ_y² I), with an operator A that is linear or not.

A linear operator has its adjoint beside it, ⟨A x, y⟩ = ⟨x, Aᵀ y⟩, with which the methods solve for what is consistent
with a measurement. Operators are modules, so that their tensors move to a device with whatever holds them.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from diffusion_lightning.inverse.conjugate_gradients import conjugate_gradients

ITERATIONS = 100
"""Of the solver where AAᵀ is not known by its eigenvalues: products with A and Aᵀ, far cheaper than a network."""


class Operator(nn.Module, ABC):
    """A of y = A(x0) + n, for a batch: every example by itself. A subclass gives A and, if it is linear, Aᵀ."""

    is_linear = True
    """Whether A(a·x + b·x') = a·A(x) + b·A(x'), so that it has an adjoint."""

    axes: int | None = 3
    """Of one measurement, the batch's left out; None if it is not known, as of any function."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), the batch first.

        Args:
            x: clean examples, ``(B, …)``.

        Raises:
            ValueError: for a shape that it cannot be applied to.
        """

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, of the shape of what is measured, the batch first.

        Args:
            y: of the shape of measurements, ``(B, …)``.

        Raises:
            ValueError: for a shape that no measurement has, and if the operator is not linear.
        """
        raise ValueError(f"{type(self).__name__}: is not linear, and has no adjoint")

    def measured(self, y: Tensor) -> Tensor:
        """y with zeros where nothing is measured, for operators that keep the place of what they leave out."""
        return y

    def count(self, y: Tensor) -> int:
        """How many numbers of each of a batch of measurements are measured."""
        return int(self.measured(torch.ones_like(y[:1])).sum())

    def shape_of(self, y: Tensor) -> tuple[int, ...]:
        """The shape of the example of which each of a batch of measurements is one."""
        return tuple(self.adjoint(y).shape[1:]) if self.is_linear else tuple(y.shape[1:])

    def solve(self, b: Tensor, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        """v with (scale·AAᵀ + shift·I) v = b, the one of least norm where it is singular.

        Args:
            b: of the shape of measurements, ``(B, …)``.
            scale: the variance of what is measured, above zero; a number, or one that spreads to ``b``.
            shift: the variance of the noise, zero or above; likewise.
        """
        return conjugate_gradients(lambda v: scale * self(self.adjoint(v)) + shift * v, b, ITERATIONS)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y = Aᵀ(AAᵀ)⁻¹ y, the smallest x for which A x is as near to y as can be, the batch first."""
        return self.adjoint(self.solve(y))

    def measure(self, x: Tensor, noise_std: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """A draw of y = A(x) + σ_y·z.

        Args:
            x: clean examples, ``(B, …)``.
            noise_std: σ_y, zero or above.
            generator: draws z.
        """
        y = self(x)
        device = generator.device if generator is not None else y.device
        z = torch.randn(y.shape, generator=generator, device=device, dtype=y.dtype).to(y.device)
        return self.measured(y + noise_std * z)

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), the batch first."""
        return super().__call__(x)


def over_eigenvalues(b: Tensor, eigenvalues: Tensor) -> Tensor:
    """b over the eigenvalues of each of its numbers, and 0 where those are 0: a pseudo-inverse."""
    is_zero = eigenvalues == 0
    return torch.where(is_zero, 0.0, b / torch.where(is_zero, 1.0, eigenvalues))
