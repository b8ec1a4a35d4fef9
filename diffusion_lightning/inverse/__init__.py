"""One trained model, many tasks: what was x0, when only y = A(x0) + n was measured?

:mod:`~diffusion_lightning.inverse.operators` says what was measured, the methods, each in a file that reads as its
paper, are denoisers or samplers of p(x0 | y), and :func:`restore` draws answers.
"""

from diffusion_lightning.inverse.operators import Inpainting, Operator
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.inverse.replacement import Replacement
from diffusion_lightning.inverse.restore import restore

__all__ = ["Inpainting", "Operator", "Posterior", "Replacement", "restore"]
