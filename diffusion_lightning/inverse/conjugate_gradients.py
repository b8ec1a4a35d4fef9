"""Systems M v = b with a symmetric M that is known by its products alone, one for each example of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lightning.sde import expand


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """v with M v = b by conjugate gradients from v = 0 (Hestenes & Stiefel 1952): each example on its own.

    Where M is singular and b in its range, v is the solution of least norm.

    Args:
        product: v ↦ M v, for a batch; M is symmetric and has no negative eigenvalue.
        b: ``(B, …)``.
        iterations: products at most; in exact arithmetic as many as M has different eigenvalues are enough.
        tolerance: an example is done when its residual is this share of b's norm.

    Returns:
        v, of the shape of ``b``.
    """
    v, residual = torch.zeros_like(b), b
    direction, square = residual, _dot(residual, residual)
    enough = tolerance**2 * square
    for _ in range(iterations):
        going = square > enough
        if not going.any():
            break
        image = product(direction)
        curvature = _dot(direction, image)
        # rounding may leave a direction without curvature, or with a negative one: such an example ends there
        going &= curvature > 0
        step = torch.where(going, square / curvature, 0.0)
        v = v + expand(step, v) * direction
        residual = residual - expand(step, v) * image
        before, square = square, torch.where(going, _dot(residual, residual), torch.zeros_like(square))
        direction = residual + expand(torch.where(going, square / before, 0.0), v) * direction
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
