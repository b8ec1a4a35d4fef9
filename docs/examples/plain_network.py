"""A network of one's own: any module called ``network(x, time_signal, labels)``."""

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.networks.embeddings import GaussianFourierFeatures


class PlainNetwork(nn.Module):
    """Convolutions of one width on images of any size; the time is added to their features."""

    def __init__(self, in_channels: int = 1, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.in_channels, self.width, self.depth = in_channels, width, depth  # checkpoints rebuild it from these
        self.time = GaussianFourierFeatures(width, scale=1.0)
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=2**i, dilation=2**i) for i in range(depth))
        self.last = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        h, time = self.first(x), self.time(time_signal)[..., None, None]
        for convolution in self.inner:
            h = h + convolution(F.silu(h + time))
        return self.last(h)
