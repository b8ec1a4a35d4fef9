"""Checkpoints as other programs take them: one file a format, each written from a Denoiser that holds its EMA weights.

What every format's folder holds beside its weights is in ``record.py``. ``program.py``, ``onnx_model.py`` and
``diffusers_model.py`` are imported where they are needed: they load much, the last two from optional packages.
"""

from diffusion_lightning.export.weights import load_denoiser, load_sampler

__all__ = ["load_denoiser", "load_sampler"]
