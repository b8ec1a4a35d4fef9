"""Sets of images that torchvision downloads and reads."""

import os
from typing import Any, ClassVar

import torch

from diffusion_lightning.data.arguments import check_at_least
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages


class TorchvisionImages(ImageDataModule):
    """A set that torchvision downloads and reads; its own test set is the held-out one.

    A root that already holds the set is only read: nothing is downloaded and nothing written.

    Args:
        root: folder that holds the set in torchvision's layout, or where it is to be downloaded.
        image_size: height and width that the images are resized to; their own if left out.
        kwargs: those of `ImageDataModule`.

    Raises:
        ValueError: if `image_size` is below 1.
        OSError: from `prepare_data` and `setup`, if the set is not there and cannot be downloaded, or is damaged.
    """

    source: ClassVar[type]
    layout: ClassVar[str]

    def __init__(self, root: str = "data", image_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if image_size is not None:
            check_at_least(1, image_size=image_size)
            self.shape = (self.shape[0], image_size, image_size)
        self.root = root
        self.image_size = image_size

    def prepare_data(self) -> None:
        """Download the set unless `root` holds it. Lightning calls this in one process per machine."""
        self._read(train=True, download=True)

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training set and the test set, in their published order."""
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool, download: bool = False) -> TensorImages:
        try:
            source = self.source(os.path.expanduser(self.root), train=train, download=download)
        except Exception as error:  # torchvision raises whatever the network, the disk or the unpacking raised
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(
                f"data.root={str(self.root)!r}: {self.source.__name__} can be neither read from nor downloaded to this "
                f"folder ({reason}); give a data.root that holds {self.layout}, or a writable one and a network"
            ) from error
        images = torch.as_tensor(source.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, torch.as_tensor(source.targets, dtype=torch.int64), self.image_size)
