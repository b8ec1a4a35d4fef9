"""Operators on pixels: some are known, or sums of them are; AAᵀ multiplies each number of y by itself."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from diffusion_lightning.inverse.operators.base import Operator, over_eigenvalues

LUMA = (0.299, 0.587, 0.114)
"""The grey value of red, green and blue (ITU-R BT.601, as Pillow and torchvision have it)."""


class _Diagonal(Operator):
    """One of which AAᵀ is diagonal."""

    @property
    @abstractmethod
    def eigenvalues(self) -> Tensor | float:
        """Of AAᵀ, one for each number of y, or one for all."""

    def solve(self, b: Tensor, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        return over_eigenvalues(b, torch.as_tensor(scale * self.eigenvalues + shift).to(b).expand(b.shape))


class Inpainting(_Diagonal):
    """A x = m·x: what is known of an example, and zero elsewhere.

    Args:
        mask: m, true (or 1) where it is known: of the shape of one example, or of one that spreads to it, such as
            ``(H, W)`` for pictures; ``(D,)`` for points.

    Raises:
        ValueError: if the mask has values but 0 and 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask: must be true (1) where an example is known and false (0) elsewhere")
        self.register_buffer("mask", mask.bool())
        self.axes = 1 if mask.ndim == 1 else 3

    @property
    def eigenvalues(self) -> Tensor:
        return self.mask.float()

    def forward(self, x: Tensor) -> Tensor:
        example, mask = tuple(x.shape[1:]), tuple(self.mask.shape)
        fits = all(m in (1, n) for m, n in zip(mask[::-1], example[::-1], strict=False))
        if len(mask) > len(example) or not fits:
            raise ValueError(f"mask: has shape {mask}, examples {example}: must be of that shape, or spread to it")
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def measured(self, y: Tensor) -> Tensor:
        return self(y)

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} known"


class Crop(_Diagonal):
    """A x = a window of the picture, of which what lies around is asked for (outpainting).

    Args:
        size: (height, width) of the window.
        image_size: (height, width) of the whole picture.
        offset: (rows, columns) before the window; in the middle if left out.

    Raises:
        ValueError: if the window does not lie in the picture.
    """

    eigenvalues = 1.0

    def __init__(
        self, size: tuple[int, int], image_size: tuple[int, int], offset: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        (height, width), (rows, columns) = size, image_size
        top, left = offset if offset is not None else ((rows - height) // 2, (columns - width) // 2)
        if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
            raise ValueError(
                f"size={tuple(size)}, offset={(top, left)}: the window must lie in the picture of {tuple(image_size)}"
            )
        self.size, self.image_size, self.offset = (height, width), (rows, columns), (top, left)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x, self.image_size)
        (height, width), (top, left) = self.size, self.offset
        return x[..., top : top + height, left : left + width]

    def adjoint(self, y: Tensor) -> Tensor:
        _check_size(y, self.size, "y")
        (height, width), (top, left), (rows, columns) = self.size, self.offset, self.image_size
        return pad(y, (left, columns - left - width, top, rows - top - height))


class Grayscale(_Diagonal):
    """A x = the grey value of each pixel of a colour picture, whose colours are asked for (colouring).

    0.299 red + 0.587 green + 0.114 blue. ``(B, 3, H, W)`` → ``(B, 1, H, W)``.
    """

    eigenvalues = sum(w**2 for w in LUMA)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x: has shape {tuple(x.shape)}: Grayscale is of pictures of 3 channels, (B, 3, H, W)")
        return (x * self._weights(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        if y.ndim != 4 or y.shape[1] != 1:
            raise ValueError(f"y: has shape {tuple(y.shape)}: Grayscale makes pictures of 1 channel, (B, 1, H, W)")
        return y * self._weights(y)

    @staticmethod
    def _weights(x: Tensor) -> Tensor:
        return x.new_tensor(LUMA)[:, None, None]


class Downsample(_Diagonal):
    """A x = the mean of each block of pixels, which are asked for (super-resolution).

    Args:
        factor: the side of a block; height and width are multiples of it.

    Raises:
        ValueError: if it is below 1.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if not (factor >= 1 and factor % 1 == 0):
            raise ValueError(f"factor={factor}: must be a whole number of at least 1")
        self.factor = int(factor)

    @property
    def eigenvalues(self) -> float:
        return 1 / self.factor**2

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"factor={self.factor}: must divide the height and the width of pictures (B, C, H, W), here of shape "
                f"{tuple(x.shape)}"
            )
        return avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return interpolate(y, scale_factor=self.factor, mode="nearest") / self.factor**2


class Linear(Operator):
    """A x = a matrix times each point.

    Args:
        matrix: A, ``(M, D)``, for points ``(B, D)``.
    """

    axes = 1

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        if matrix.ndim != 2:
            raise ValueError(f"matrix: has shape {tuple(matrix.shape)}: must have two axes, (M, D)")
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, 1, "x")
        return x @ self.matrix.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        self._check(y, 0, "y")
        return y @ self.matrix.to(y.dtype)

    def _check(self, x: Tensor, axis: int, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.matrix.shape[axis]:
            raise ValueError(
                f"{name}: has shape {tuple(x.shape)}: must be (B, {self.matrix.shape[axis]}) for a matrix of shape "
                f"{tuple(self.matrix.shape)}"
            )


def _check_size(x: Tensor, size: tuple[int, int], name: str = "x") -> None:
    if tuple(x.shape[-2:]) != size:
        raise ValueError(f"{name}: has shape {tuple(x.shape)}: must be of {size[0]} × {size[1]} pixels")
