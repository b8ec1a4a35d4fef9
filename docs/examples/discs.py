"""A data set of one's own: uint8 images and labels; the rest is the parent's."""

import torch

from diffusion_lightning import ImageDataModule, TensorImages


class Discs(ImageDataModule):
    """White discs of random places and sizes on black, drawn on the spot."""

    shape = (1, 16, 16)
    num_classes = 1
    fid_feature = "inception"

    def __init__(self, num_images: int = 4000, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_images = num_images

    def load_images(self) -> tuple[TensorImages, TensorImages]:
        """Those to train on, and those that are held out."""
        return self.draw(self.num_images, seed=0), self.draw(200, seed=1)

    def draw(self, n: int, seed: int) -> TensorImages:
        u = torch.rand(3, n, 1, 1, generator=torch.Generator().manual_seed(seed))
        x, y, radius = 4 + 8 * u[0], 4 + 8 * u[1], 2 + 2 * u[2]
        across, down = torch.arange(16).view(1, 1, 16), torch.arange(16).view(1, 16, 1)
        inside = (across - x) ** 2 + (down - y) ** 2 < radius**2
        return TensorImages(255 * inside.byte()[:, None], torch.zeros(n, dtype=torch.int64))
