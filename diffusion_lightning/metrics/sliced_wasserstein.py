r"""The sliced Wasserstein distance between two sets of points: optimal transport on the line, averaged over directions.

.. math:: \mathrm{SW}_2(x, y)^2 = \mathbb{E}_{\theta}\Big[\frac1N \sum_{i=1}^N
          \big(\langle\theta, x\rangle_{(i)} - \langle\theta, y\rangle_{(i)}\big)^2\Big]

with θ uniform on the unit sphere of R^D and the subscript (i) for the i-th smallest of the N projections: on a line,
sorting is the optimal transport (Bonneel et al. 2015). It has the units of x; two copies of one set, the second moved
by a vector v, are ‖v‖/√D apart.
"""

import torch
from torch import Tensor

from diffusion_lightning.floats import has_float64
from diffusion_lightning.sde import standard_normal


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, generator: torch.Generator | None = None) -> float:
    """SW₂ between two sets of as many points, with the mean over random directions; in float64 on the CPU.

    Args:
        x: points, ``(N, D)``.
        y: points, ``(N, D)``; their order does not matter.
        projections: number of directions, at least 1; the relative error falls as one over its root.
        generator: draws the directions.

    Returns:
        The distance, zero or above, in units of x.

    Raises:
        ValueError: if the shapes are not equal and ``(N, D)``, a value is not finite, or ``projections`` is below 1.
    """
    if x.ndim != 2 or x.shape != y.shape or not x.numel():
        raise ValueError(
            f"x, y: shapes {tuple(x.shape)} and {tuple(y.shape)} given, but both must be (N, D), N and D at least 1"
        )
    if projections < 1:
        raise ValueError(f"projections={projections}: must be at least 1")
    for name, points in (("x", x), ("y", y)):
        if not points.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values: all must be finite")
    # a generator draws on its own device
    drawn_as = torch.float64 if generator is None or has_float64(generator.device) else torch.float32
    directions = standard_normal((x.shape[1], projections), device="cpu", dtype=drawn_as, generator=generator).double()
    directions /= directions.norm(dim=0)
    first, second = ((points.to("cpu", torch.float64) @ directions).sort(0).values for points in (x, y))
    return (first - second).square().mean().sqrt().item()
