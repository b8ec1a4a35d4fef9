"""Images and points to learn from, as LightningDataModules that yield `(x, condition)`.

The names load on first use, as those of the package: what lies beside the data modules costs no Lightning.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "BatchDataModule": "base",
    "ImageDataModule": "base",
    "TensorImages": "tensor_images",
    "ConditionSource": "condition",
    "CIFAR10": "cifar10",
    "ImageFolder": "image_folder",
    "MNIST": "mnist",
    "EmbeddedMNIST": "mnist",
    "Points": "points",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
