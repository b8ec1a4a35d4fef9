"""Images in memory as uint8, and what is done to a whole batch of them: resizing, mirroring, normalization."""

from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_lightning.conditions import Condition

ImageSet: TypeAlias = Dataset[tuple[Tensor, Condition]]
"""A sized map-style dataset: `dataset[indices]` is `(uint8 (B, C, H, W), int64 (B,))`, or with conditions by name."""


class TensorImages(Dataset[tuple[Tensor, Condition]]):
    """Images held in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        image_size: height and width that batches are resized to (bilinear, antialiased), if given.
        vectors: float32 (N, D), conditions beside the labels, if given.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, image_size: int | None = None, vectors: Tensor | None = None
    ) -> None:
        self.images = images
        self.labels = labels
        self.image_size = image_size
        self.vectors = vectors

    @property
    def resizes(self) -> bool:
        """Whether batches are of another size than the images held."""
        return self.image_size is not None and self.images.shape[-2:] != (self.image_size, self.image_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int] | Tensor) -> tuple[Tensor, Condition]:
        """The batch of these images, uint8 (B, C, H, W), and its `conditions_of`, where the images are."""
        # to a GPU without waiting for what it is still computing
        index = torch.as_tensor(indices).to(self.images.device, non_blocking=self.images.is_cuda)
        images = self.images.index_select(0, index)
        if self.resizes:
            from torchvision.transforms.v2.functional import resize  # here, for images of their own size do without it

            # batch by batch: whole sets of larger images would fill the memory
            images = resize(images, [self.image_size, self.image_size], antialias=True)
        return images, conditions_of(index, self.labels, self.vectors)

    def labelled(self, labels: Tensor) -> "TensorImages":
        """The same images with other labels."""
        return TensorImages(self.images, labels, self.image_size, self.vectors)

    def to(self, device: torch.device) -> "TensorImages":
        """The same set with its images and conditions on a device."""
        vectors = self.vectors.to(device) if self.vectors is not None else None
        return TensorImages(self.images.to(device), self.labels.to(device), self.image_size, vectors)


def conditions_of(index: Tensor, labels: Tensor, vectors: Tensor | None) -> Condition:
    """The conditions of some of N examples: their labels (B,), and with vectors (N, D) both by name."""
    chosen = labels.index_select(0, index)
    return chosen if vectors is None else {"labels": chosen, "vector": vectors.index_select(0, index)}


def normalize(images: Tensor) -> Tensor:
    """uint8 images of any shape to float32 in [-1, 1]: x/127.5 − 1, so that 0 is exactly −1 and 255 exactly 1."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def random_flip(images: Tensor, seed: int, rank: int = 0, world_size: int = 1) -> Tensor:
    """Mirror each image left to right with probability ½, by a generator on the images' device.

    Args:
        images: (B, C, H, W), any dtype; every `world_size`-th of a larger batch, beginning with the `rank`-th.
        seed: decides which images of that batch are mirrored; nothing else does.
        rank: of the process that has these images.
        world_size: number of processes.

    Returns:
        A new tensor like `images`.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    drawn = torch.rand(len(images) * world_size, generator=generator, device=images.device)
    mirrored = drawn[rank::world_size] < 0.5
    # Choosing whole images from both versions copies memory; `torch.where` over the pixels is several times slower.
    chosen = torch.arange(len(images), device=images.device) + mirrored * len(images)
    return torch.cat((images, images.flip(-1))).index_select(0, chosen)
