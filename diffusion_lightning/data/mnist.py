"""Handwritten digits: the 10,000 that come with the package, and the whole of MNIST (LeCun et al. 1998)."""

from importlib.resources import files

import numpy as np
import torch
import torchvision

from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages
from diffusion_lightning.data.torchvision_images import TorchvisionImages

DIGITS = [str(digit) for digit in range(10)]


class EmbeddedMNIST(ImageDataModule):
    """10,000 real MNIST digits shipped in the package, 1,000 of each class: nothing to download, nothing on disk.

    9,000 are for training; the last 100 of each class are held out for validation and test. Images are (1, 28, 28).
    The arguments are those of `ImageDataModule`.
    """

    shape = (1, 28, 28)
    num_classes = 10
    class_names = DIGITS
    fid_feature = "digits"

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The 9,000 training digits and the 1,000 held-out ones, both in the original order of MNIST."""
        with files(__package__).joinpath("embedded", "mnist_10k.npz").open("rb") as file, np.load(file) as arrays:
            images = torch.from_numpy(arrays["images"]).unsqueeze(1)
            labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(len(DIGITS)):
            held_out[(labels == label).nonzero()[-100:]] = True
        return TensorImages(images[~held_out], labels[~held_out]), TensorImages(images[held_out], labels[held_out])


class MNIST(TorchvisionImages):
    """MNIST: 60,000 training digits, and the 10,000 test digits for validation and test. Images are (1, 28, 28).

    The arguments are those of `TorchvisionImages`.
    """

    source = torchvision.datasets.MNIST
    layout = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"
    shape = (1, 28, 28)
    num_classes = 10
    class_names = DIGITS
    fid_feature = "digits"
