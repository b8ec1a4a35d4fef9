"""One trained model, many tasks: what was x0, when only y = A(x0) + n was measured?

:mod:`~diffusion_lightning.inverse.operators` says what was measured, the methods, each in a file that reads as its
paper, are denoisers or samplers of p(x0 | y), and :func:`restore` draws answers by any of them.
"""

from diffusion_lightning.inverse.dps import DPS
from diffusion_lightning.inverse.mmps import MMPS
from diffusion_lightning.inverse.operators import (
    Clip,
    Crop,
    Downsample,
    Fourier,
    Function,
    GaussianBlur,
    Grayscale,
    Inpainting,
    Linear,
    MotionBlur,
    Operator,
    Quantize,
)
from diffusion_lightning.inverse.pgdm import PGDM
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.inverse.posterior_sampler import PosteriorSampler
from diffusion_lightning.inverse.repaint import RePaint
from diffusion_lightning.inverse.replacement import Replacement
from diffusion_lightning.inverse.restore import METHODS, restore
from diffusion_lightning.inverse.sdedit import SDEdit
from diffusion_lightning.inverse.twisted_smc import TwistedSMC

__all__ = [
    "DPS",
    "METHODS",
    "MMPS",
    "PGDM",
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
    "Posterior",
    "PosteriorSampler",
    "Quantize",
    "RePaint",
    "Replacement",
    "SDEdit",
    "TwistedSMC",
    "restore",
]
