"""CIFAR-10: small colour photographs of ten kinds of thing (Krizhevsky 2009)."""

from typing import Any

import torchvision

from diffusion_lightning.data.torchvision_images import TorchvisionImages

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10(TorchvisionImages):
    """CIFAR-10: 50,000 training images, and the 10,000 test images for validation and test. Images are (3, 32, 32).

    Args:
        root: folder that holds the set in torchvision's layout, or where it is to be downloaded.
        flip: mirror training images at random.
        kwargs: `image_size` of `TorchvisionImages`, and those of `ImageDataModule`.
    """

    source = torchvision.datasets.CIFAR10
    layout = "cifar-10-batches-py/{data_batch_1 … data_batch_5,test_batch,batches.meta}"
    shape = (3, 32, 32)
    num_classes = 10
    class_names = NAMES
    fid_feature = "inception"

    def __init__(self, root: str = "data", flip: bool = True, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.flip = flip
