"""Images and points to learn from, as LightningDataModules that yield `(x, label)`."""

from diffusion_lightning.data.base import BatchDataModule, ImageDataModule, TensorImages
from diffusion_lightning.data.cifar10 import CIFAR10
from diffusion_lightning.data.image_folder import ImageFolder
from diffusion_lightning.data.mnist import MNIST, EmbeddedMNIST
from diffusion_lightning.data.points import Points

__all__ = [
    "CIFAR10",
    "MNIST",
    "BatchDataModule",
    "EmbeddedMNIST",
    "ImageDataModule",
    "ImageFolder",
    "Points",
    "TensorImages",
]
