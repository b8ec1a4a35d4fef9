"""The usual operators of y = A(x0) + n, and what makes one of any function.

They are our own rather than deepinv's: that library brings torchvision, scipy, scikit-image and its own command line,
and its operators have no pseudo-inverse of a measurement with noise; ours are of ten lines each.
"""

from diffusion_lightning.inverse.operators.base import Operator
from diffusion_lightning.inverse.operators.frequencies import Fourier, GaussianBlur, MotionBlur
from diffusion_lightning.inverse.operators.functions import Clip, Function, Quantize
from diffusion_lightning.inverse.operators.pixels import Crop, Downsample, Grayscale, Inpainting, Linear

__all__ = [
    "Clip",
    "Crop",
    "Downsample",
    "Fourier",
    "Function",
    "GaussianBlur",
    "Grayscale",
    "Inpainting",
    "Linear",
    "MotionBlur",
    "Operator",
    "Quantize",
]
