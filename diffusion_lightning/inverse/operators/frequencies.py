"""Operators that multiply frequencies: blur, and undersampled Fourier transforms.

A picture is taken as one period, so that the discrete Fourier transform diagonalizes a blur: what leaves on one side
comes in on the other.
"""

import math

import torch
from torch import Tensor

from diffusion_lightning.inverse.operators.base import Operator, over_eigenvalues


class _Blur(Operator):
    """A x = the convolution of each channel with a kernel that is centred on a pixel and sums to 1.

    Args:
        kernel: k, ``(h, w)``, both odd.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel / kernel.sum())

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._multiply(y, self._transfer(y).conj())

    def solve(self, b: Tensor, scale: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        power = self._transfer(b).abs() ** 2
        # frequencies that the blur has all but taken away would be rounding errors, enlarged
        power = torch.where(power > 1e-10 * power.max(), power, 0.0)
        frequencies = torch.fft.rfft2(b)
        solved = over_eigenvalues(frequencies, (scale * power + shift).expand(frequencies.shape))
        return torch.fft.irfft2(solved, s=b.shape[-2:])

    def _transfer(self, x: Tensor) -> Tensor:
        """What each frequency is multiplied by, as rfft2 has them."""
        (rows, columns), (height, width) = self.kernel.shape, x.shape[-2:]
        if rows > height or columns > width:
            raise ValueError(
                f"{type(self).__name__}: its kernel of {rows} × {columns} pixels is larger than pictures of {height} × "
                f"{width}: blur less"
            )
        spread = x.new_zeros(height, width)
        spread[:rows, :columns] = self.kernel
        return torch.fft.rfft2(spread.roll((-(rows // 2), -(columns // 2)), (0, 1)))

    @staticmethod
    def _multiply(x: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


class GaussianBlur(_Blur):
    """A x = each channel blurred by a Gaussian, cut off at three standard deviations.

    Args:
        sigma: its standard deviation, in pixels, above zero.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma={sigma}: must be above zero, in pixels")
        reach = max(1, math.ceil(3 * sigma))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        super().__init__(torch.outer(line, line))
        self.sigma = sigma


class MotionBlur(_Blur):
    """A x = each channel blurred along a line, as by a camera that moves.

    Args:
        length: of the line, in pixels, at least 1.
        angle: of the line, in degrees from the horizontal, counter-clockwise.

    Raises:
        ValueError: if the length is below 1, or either is not finite.
    """

    def __init__(self, length: float = 5.0, angle: float = 0.0) -> None:
        if not (1 <= length < math.inf and math.isfinite(angle)):
            raise ValueError(f"length={length}, angle={angle}: must be at least 1 pixel, and a number of degrees")
        reach = math.ceil((length - 1) / 2)
        rows, columns = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
        radians = math.radians(angle)
        along = columns * math.cos(radians) - rows * math.sin(radians)
        across = columns * math.sin(radians) + rows * math.cos(radians)
        # a pixel counts by how much of the line, one pixel wide, it has
        super().__init__((1 - across.abs()).clamp(min=0) * (length / 2 + 0.5 - along.abs()).clamp(0, 1))
        self.length, self.angle = length, angle


class Fourier(Operator):
    """A x = some frequencies of each channel, as magnetic resonance imaging measures them.

    The real and then the imaginary parts of the orthonormal discrete Fourier transform, zero where it is not measured:
    ``(B, C, H, W)`` → ``(B, 2C, H, W)``, so that y is real.

    Args:
        mask: true (or 1) for each frequency that is measured, ``(H, W)``, in the order of :func:`torch.fft.fft2`.

    Raises:
        ValueError: if the mask has another number of axes, or values but 0 and 1.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.ndim != 2 or not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask: must be (H, W), true (1) for each frequency that is measured, else false (0)")
        self.register_buffer("mask", mask.bool())

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, "x")
        frequencies = torch.fft.fft2(x, norm="ortho") * self.mask
        return torch.cat([frequencies.real, frequencies.imag], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._from_frequencies(self._frequencies(y))

    def measured(self, y: Tensor) -> Tensor:
        return y * self.mask

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        # a real picture's frequency k is the conjugate of that of −k: AᵀA multiplies both by the mean of their masks
        counted = self.mask.float()
        counted = (counted + torch.roll(counted.flip((0, 1)), (1, 1), (0, 1))) / 2
        frequencies = self._frequencies(y)
        return self._from_frequencies(over_eigenvalues(frequencies, counted.expand(frequencies.shape)))

    def _frequencies(self, y: Tensor) -> Tensor:
        self._check(y, "y")
        if y.shape[1] % 2:
            raise ValueError(f"y: has {y.shape[1]} channels: must be two for each of the picture, real and imaginary")
        real, imaginary = y.chunk(2, dim=1)
        return torch.complex(real, imaginary) * self.mask

    @staticmethod
    def _from_frequencies(frequencies: Tensor) -> Tensor:
        return torch.fft.ifft2(frequencies, norm="ortho").real

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 4 or x.shape[-2:] != self.mask.shape:
            raise ValueError(
                f"mask: has shape {tuple(self.mask.shape)}, {name} {tuple(x.shape)}: must be of the pictures' height "
                "and width"
            )
