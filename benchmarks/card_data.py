"""Coloured pictures in ten classes for a card's short training, where nothing can be downloaded."""

import io
import os
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages

CIFAR10 = Path(os.environ.get("CARD_PICTURES", "train.zip"))
"""A zip of folders of classes, named by CARD_PICTURES."""

GENERATED = 20_000


class Pictures(ImageDataModule):
    """CIFAR-10's training pictures, if CARD_PICTURES names a zip of its folders of classes; else drawn ones."""

    shape = (3, 32, 32)
    num_classes = 10
    fid_feature = "inception"
    flip = True

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        images, labels = read(CIFAR10) if CIFAR10.is_file() else generated(GENERATED)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out, training = order.tensor_split([len(order) // 20])
        return TensorImages(images[training], labels[training]), TensorImages(images[held_out], labels[held_out])


def read(path: Path) -> tuple[Tensor, Tensor]:
    """The pictures ``(N, 3, 32, 32)`` of a zip of folders ``…/<class>/<name>.png``, and their classes by alphabet."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        classes = sorted({Path(name).parent.name for name in names})
        images = [pil_to_tensor(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    return torch.stack(images), torch.tensor([classes.index(Path(name).parent.name) for name in names])


def generated(num: int) -> tuple[Tensor, Tensor]:
    """Discs on a sky that grows lighter downwards, each class in a colour of its own; uint8 ``(num, 3, 32, 32)``."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (num,), generator=draw)
    centre, radius = torch.rand(num, 2, 1, 1, generator=draw), 0.1 + 0.2 * torch.rand(num, 1, 1, generator=draw)
    y, x = torch.linspace(0, 1, 32)[:, None], torch.linspace(0, 1, 32)
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    hue = 2 * torch.pi * (labels[:, None] / 10 + torch.arange(3) / 3)
    colour = 0.5 + 0.5 * hue.cos()
    sky = (0.2 + 0.6 * y * torch.rand(num, 1, 1, generator=draw)).expand(num, 32, 32)
    picture = torch.where(inside[:, None], colour[..., None, None], sky[:, None])
    return (255 * picture).to(torch.uint8), labels
