"""What the benchmarks compare: this framework and what people would otherwise pick, behind one small interface.

Each is set as its own documentation recommends for images of this size; its ``settings`` say how, and stand in every
table. All learn from the same digits, uint8 in memory, in an order of their own.
"""

from importlib import import_module

from systems.base import System

_HOME = {
    "ours": ("ours", "Ours"),
    "ours-without-classes": ("ours", "OursWithoutClasses"),
    "document5": ("document5", "Document5"),
    "diffusers": ("diffusers_unet", "Diffusers"),
    "denoising-diffusion-pytorch": ("denoising_diffusion", "DenoisingDiffusionPytorch"),
    "azula": ("azula_unet", "Azula"),
}

SYSTEMS = tuple(_HOME)


def system_class(name: str) -> type[System]:
    """The class of a system; its package is imported only now."""
    module, class_name = _HOME[name]
    return getattr(import_module(f"systems.{module}"), class_name)
