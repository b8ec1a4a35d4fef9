"""What the benchmarks compare: this framework and what people would otherwise pick, behind one small interface.

Each is set as its own documentation recommends for images of this size, and beside it stands what our training makes of
the same network and loss; its ``settings`` say how, and stand in every table. All learn from the same digits, uint8 in
memory, in an order of their own.
"""

from importlib import import_module

from systems.base import System

WITHOUT_CLASSES = {
    "ours-without-classes": ("ours", "OursWithoutClasses"),
    "document5": ("document5", "Document5"),
    "diffusers": ("diffusers_unet", "Diffusers"),
    "diffusers-our-training": ("diffusers_unet", "DiffusersByOurRecipe"),
    "denoising-diffusion-pytorch": ("denoising_diffusion", "DenoisingDiffusionPytorch"),
    "denoising-diffusion-pytorch-our-training": ("denoising_diffusion", "DenoisingDiffusionPytorchByOurRecipe"),
    "azula": ("azula_unet", "Azula"),
    "azula-our-training": ("azula_unet", "AzulaByOurRecipe"),
}

WITH_CLASSES = {
    "ours": ("ours", "Ours"),
    "diffusers-classes": ("diffusers_unet", "DiffusersWithClasses"),
    "diffusers-classes-our-training": ("diffusers_unet", "DiffusersWithClassesByOurRecipe"),
    "denoising-diffusion-pytorch-classes": ("denoising_diffusion", "DenoisingDiffusionPytorchWithClasses"),
    "denoising-diffusion-pytorch-classes-our-training": (
        "denoising_diffusion",
        "DenoisingDiffusionPytorchWithClassesByOurRecipe",
    ),
    "azula-classes": ("azula_unet", "AzulaWithClasses"),
    "azula-classes-our-training": ("azula_unet", "AzulaWithClassesByOurRecipe"),
}

PARTS = {"without classes": tuple(WITHOUT_CLASSES), "with classes": tuple(WITH_CLASSES)}
"""Like is compared with like; the first of each is ours."""

DOCUMENTED = ("document5", "diffusers", "denoising-diffusion-pytorch", "azula")
"""The peers as they are, without classes and without anything of ours."""

_HOME = WITHOUT_CLASSES | WITH_CLASSES

SYSTEMS = tuple(_HOME)


def system_class(name: str) -> type[System]:
    """The class of a system; its package is imported only now."""
    module, class_name = _HOME[name]
    return getattr(import_module(f"systems.{module}"), class_name)
