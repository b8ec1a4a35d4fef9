"""Points in the plane from distributions that can be seen at a glance, and whose truth is known exactly.

``split_normal``
    A standard normal cut in two along the second axis, the halves pushed apart: with z ~ N(0, I₂), x₁ is z₁ − 1 where
    z₁ < 0 and z₁ + 1 elsewhere, and x₂ = z₂. So no point has |x₁| < 1. The label tells the half: 0 left, 1 right. Its
    mean is 0; the coordinates are uncorrelated, of variances 2 + 2√(2/π) ≈ 3.60 and 1.
``heart``
    Uniform in the area inside the curve 16·x₁ = 16 sin³θ, 16·x₂ = 13 cos θ − 5 cos 2θ − 2 cos 3θ − cos 4θ. The factor
    16 makes it two units wide: x₁ is in [−1, 1] and x₂ in [−1.0625, 0.745], of standard deviations 0.50 and 0.39. The
    label is 0.
``moving_normal``
    A narrow normal that a number moves along a line: c ~ N(0, 1), and given c, x ~ N((3/2, 1/2)·c, Σ), of variances 1/4
    and covariance −3/20. The condition is the vector (c). Without it x ~ N(0, S), of variances 5/2 and 1/2 and
    covariance 3/5.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from diffusion_lightning.data.arguments import check_at_least
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.randomness import Stream, derive_seed


def split_normal_log_prob(x: Tensor) -> Tensor:
    """The exact log-density of ``split_normal``: N(0, I₂) at the point pulled back, −∞ in the gap |x₁| < 1.

    Args:
        x: points (…, 2).

    Returns:
        Nats, (…).

    Raises:
        ValueError: if `x` is not of that shape.
    """
    if x.shape[-1:] != (2,):
        raise ValueError(f"x must have shape (…, 2), got {tuple(x.shape)}")
    distance = x[..., 0].abs() - 1
    normal = -(distance**2 + x[..., 1] ** 2) / 2 - math.log(2 * math.pi)
    return normal.where(distance >= 0, -math.inf)


def inside_heart(x: Tensor) -> Tensor:
    """Whether points are inside the heart or on its curve, exactly: at each x₁ it is one interval of x₂.

    With s = sin θ = x₁^⅓, the curve passes x₁ at cos θ = ±c, c = √(1 − s²), where 16·x₂ is the polynomial
    q(±c) = 4 + 19(±c) − 2c² − 8(±c)³ − 8c⁴. As q(c) − q(−c) = c(38 − 16c²) ≥ 0, inside is q(−c) ≤ 16·x₂ ≤ q(c).

    Args:
        x: points (…, 2).

    Returns:
        bool (…).

    Raises:
        ValueError: if `x` is not of that shape.
    """
    if x.shape[-1:] != (2,):
        raise ValueError(f"x must have shape (…, 2), got {tuple(x.shape)}")
    width, height = x[..., 0].abs(), 16 * x[..., 1]
    square = (1 - width ** (2 / 3)).clamp(min=0)  # c²
    even, odd = 4 - 2 * square - 8 * square**2, square.sqrt() * (19 - 8 * square)
    return (width <= 1) & ((height - even).abs() <= odd)


def moving_normal_moments(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The exact distribution of ``moving_normal`` under each condition: mean (…, 2), covariance (2, 2).

    Args:
        vector: c, (…, 1).

    Raises:
        ValueError: if `vector` is not of that shape.
    """
    if vector.shape[-1:] != (1,):
        raise ValueError(f"vector must have shape (…, 1), got {tuple(vector.shape)}")
    root = vector.new_tensor(ROOT)
    return vector * vector.new_tensor(DIRECTION), root @ root.T


def moving_normal_log_prob(x: Tensor, vector: Tensor) -> Tensor:
    """The exact log-density of ``moving_normal`` under each condition.

    Args:
        x: points (…, 2).
        vector: c, (…, 1).

    Returns:
        Nats, (…).

    Raises:
        ValueError: if `x` or `vector` is not of that shape.
    """
    if x.shape[-1:] != (2,):
        raise ValueError(f"x must have shape (…, 2), got {tuple(x.shape)}")
    mean, _ = moving_normal_moments(vector)
    (a, _), (b, d) = ROOT
    first = (x - mean)[..., 0] / a
    second = ((x - mean)[..., 1] - b * first) / d
    return -(first**2 + second**2) / 2 - math.log(2 * math.pi * a * d)


def draw_points(
    distribution: Literal["split_normal", "heart", "moving_normal"], n: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw independent points of a distribution, on the generator's device.

    The heart's are drawn uniformly in a rectangle around it and kept if `inside_heart`, as 61 % are: exactly uniform.

    Args:
        distribution: see the module.
        n: how many.
        generator: draws them; torch's own if left out.

    Returns:
        The points, float32 (n, 2), and their conditions: labels, int64 (n,), or vectors, float32 (n, 1).

    Raises:
        ValueError: if there is no such distribution, or `n` is negative.
    """
    _check_distribution(distribution)
    check_at_least(0, n=n)
    return _DISTRIBUTIONS[distribution][0](n, generator)


def _draw_split_normal(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, 2, generator=generator, device=generator.device if generator is not None else None)
    right = z[:, 0] >= 0  # and not the sign, which would leave a point at 0 in the gap
    z[:, 0] += torch.where(right, 1.0, -1.0)
    return z, right.long()


def _draw_heart(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    device = generator.device if generator is not None else None
    lower, upper = torch.tensor([[-16.0, -17.0], [16.0, 12.0]], device=device) / 16
    points = torch.empty(0, 2, device=device)
    while len(points) < n:
        candidates = lower + (upper - lower) * torch.rand(2 * n, 2, generator=generator, device=device)
        points = torch.cat([points, candidates[inside_heart(candidates)]])
    return points[:n], torch.zeros(n, dtype=torch.int64, device=device)


def _draw_moving_normal(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, 3, generator=generator, device=generator.device if generator is not None else None)
    vector = z[:, :1]
    return moving_normal_moments(vector)[0] + z[:, 1:] @ z.new_tensor(ROOT).T, vector.contiguous()


DIRECTION = (1.5, 0.5)
"""Where c moves the mean of ``moving_normal``."""
ROOT = ((0.5, 0.0), (-0.3, 0.4))
"""L of its covariance Σ = L Lᵀ."""

_DISTRIBUTIONS: dict[str, tuple[Callable[[int, torch.Generator | None], tuple[Tensor, Tensor]], int]] = {
    "split_normal": (_draw_split_normal, 2),
    "heart": (_draw_heart, 1),
    "moving_normal": (_draw_moving_normal, 1),
}
"""How each distribution is drawn, and its number of classes."""


def _check_distribution(distribution: str) -> None:
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {list(_DISTRIBUTIONS)}, got {distribution!r}")


class PointsWithVectors(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Points whose condition is a vector: `dataset[indices]` is `(x (B, 2), {"vector": (B, D)})`.

    Args:
        points: float32 (N, 2).
        vectors: float32 (N, D).
    """

    def __init__(self, points: Tensor, vectors: Tensor) -> None:
        self.tensors = points, vectors
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        points, vectors = self.tensors
        return points[indices], {"vector": vectors[indices]}


PointSet: TypeAlias = TensorDataset | PointsWithVectors


class Points(BatchDataModule):
    """Points in the plane, drawn once: loaders yield `(x float32 (B, 2), label int64 (B,))`.

    Of ``moving_normal`` the condition is not a label but `{"vector": float32 (B, 1)}`.

    The points depend on (`distribution`, `seed`) and their number alone, the training points not on the held-out ones
    or the other way round, and are the same in every process.

    Attributes:
        shape: (2,).
        num_classes: 2 for ``split_normal``, 1 for the others.
        class_names: ``left`` and ``right`` for ``split_normal``, none for the others.
        condition_dim: 1 for ``moving_normal``, none for the others.

    Args:
        distribution: ``"split_normal"``, ``"heart"`` or ``"moving_normal"``, see the module.
        num_points: how many to train on.
        num_held_out: how many for validation and test.
        kwargs: those of `BatchDataModule`; the seed decides the points, too.

    Raises:
        ValueError: if an argument is out of its range.
    """

    shape = (2,)

    def __init__(
        self,
        distribution: Literal["split_normal", "heart", "moving_normal"] = "split_normal",
        num_points: int = 10000,
        num_held_out: int = 2000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_distribution(distribution)
        check_at_least(1, num_points=num_points, num_held_out=num_held_out)
        self.distribution = distribution
        self.num_points = num_points
        self.num_held_out = num_held_out
        self.num_classes = _DISTRIBUTIONS[distribution][1]
        self.class_names = ["left", "right"] if distribution == "split_normal" else None
        self.condition_dim = 1 if distribution == "moving_normal" else None
        self._sets: tuple[PointSet, PointSet] | None = None

    def sets(self) -> tuple[PointSet, PointSet]:
        """The training points and the held-out ones, drawn at the first call."""
        if self._sets is None:
            self._sets = self._draw(self.num_points, 0), self._draw(self.num_held_out, 1)
        return self._sets

    @property
    def held_out(self) -> Tensor:
        """The real points that training never saw, to compare samples with: float32 (num_held_out, 2), on the CPU."""
        return self.sets()[1].tensors[0]

    def _draw(self, n: int, part: int) -> PointSet:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, part, Stream.POINTS))
        drawn = draw_points(self.distribution, n, generator)
        return TensorDataset(*drawn) if self.condition_dim is None else PointsWithVectors(*drawn)
