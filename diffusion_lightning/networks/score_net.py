"""The score network of Song's tutorial: a small U-Net without padding, every stage shifted by the time."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import check_inputs, require
from diffusion_lightning.networks.embeddings import GaussianFourierFeatures


class _Stage(nn.Module):
    """A convolution, plus a shift of every channel that is linear in the embedding, normalized, through SiLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, embed_dim: int, groups: int) -> None:
        super().__init__()
        self.conv = conv
        self.shift = nn.Linear(embed_dim, conv.out_channels)
        self.norm = nn.GroupNorm(groups, conv.out_channels)

    def forward(self, h: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        h = self.conv(h) if size is None else self.conv(h, output_size=size)
        return F.silu(self.norm(h + self.shift(embedding)[:, :, None, None]))


class ScoreNet(nn.Module):
    """The tutorial's score network ``F(x, t)``, *without* its last division by σ(t).

    Encoder: a 3×3 convolution, then one strided convolution per further entry of ``channels``, none padded. Decoder:
    their transposes in reverse order, each taking the encoder's features of its resolution beside the decoder's. Each
    stage is convolution → ``+ W e(t)`` → group norm → SiLU, where ``e(t)`` is a linear layer and SiLU on Gaussian
    Fourier features of t. The score is ``F(x, t) / σ(t)``; that division is the parameterization's.

    With the defaults, on 28×28×1, it has 1,115,297 trainable parameters and 128 fixed frequencies. The CIFAR-10
    variant (``in_channels=3, strided_kernel=4``) has 1,790,819 trainable ones, and 6,844,579 with ``channels=(96, 192,
    256, 384)``.

    From: Y. Song, "Generative Modeling by Estimating Gradients of the Data Distribution", 2021
    (https://yang-song.net/blog/2021/score), and the tutorial linked there.

    Args:
        channels: channels of each stage, two or more, multiples of 32 (group norms have 32 groups, the first has 4).
        embed_dim: size of the time embedding, positive and even.
        in_channels: channels of the images, and of the output.
        strided_kernel: kernel size of the strided convolutions. Size 4 covers 32×32 without losing a row at any stage.
        fourier_scale: standard deviation of the frequencies, positive; see
            :class:`~diffusion_lightning.networks.embeddings.GaussianFourierFeatures`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        embed_dim: int = 256,
        in_channels: int = 1,
        strided_kernel: Literal[3, 4] = 3,
        fourier_scale: float = 30.0,
    ) -> None:
        super().__init__()
        multiples = all(c > 0 and c % 32 == 0 for c in channels)
        require("channels", channels, len(channels) >= 2 and multiples, "at least two positive multiples of 32")
        require("embed_dim", embed_dim, embed_dim >= 2 and embed_dim % 2 == 0, "a positive even number")
        require("in_channels", in_channels, in_channels >= 1, "at least 1")
        require("strided_kernel", strided_kernel, strided_kernel in (3, 4), "3 or 4")
        require("fourier_scale", fourier_scale, 0 < fourier_scale < math.inf, "positive")
        self.channels = tuple(channels)
        self.embed_dim = embed_dim
        self.in_channels = in_channels
        self.strided_kernel = strided_kernel
        self.fourier_scale = fourier_scale

        self.time_features = GaussianFourierFeatures(embed_dim, fourier_scale)
        self.time_linear = nn.Linear(embed_dim, embed_dim)

        width = self.channels[0]
        self.encoder = nn.ModuleList([_Stage(nn.Conv2d(in_channels, width, 3, bias=False), embed_dim, groups=4)])
        for coarser in self.channels[1:]:
            conv = nn.Conv2d(width, coarser, strided_kernel, stride=2, bias=False)
            self.encoder.append(_Stage(conv, embed_dim, groups=32))
            width = coarser

        self.decoder = nn.ModuleList()
        for finer in reversed(self.channels[:-1]):
            transposed = nn.ConvTranspose2d(width, finer, strided_kernel, stride=2, bias=False)
            self.decoder.append(_Stage(transposed, embed_dim, groups=32))
            width = 2 * finer  # the encoder's features join
        self.conv_out = nn.ConvTranspose2d(width, in_channels, 3)

        self._smallest = 1
        for _ in self.channels[1:]:
            self._smallest = 2 * (self._smallest - 1) + strided_kernel
        self._smallest += 2

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: images ``(B, in_channels, H, W)``, at least 17×17 with four stages and kernels of 3 (24×24 with 4).
            time_signal: times ``(B,)``.
            labels: must be None, this network is unconditional.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if labels are given, the images are too small for the strided convolutions, or a shape is wrong.
        """
        check_inputs(x, time_signal, self.in_channels)
        if labels is not None:
            raise ValueError("labels must be None: ScoreNet is unconditional")
        if min(x.shape[2:]) < self._smallest:
            smallest = f"{self._smallest}×{self._smallest}"
            raise ValueError(f"x must be at least {smallest} for {len(self.channels)} stages, got {tuple(x.shape)}")

        embedding = F.silu(self.time_linear(self.time_features(time_signal).to(x.dtype)))

        h, skips = x, []
        for stage in self.encoder:
            h = stage(h, embedding)
            skips.append(h)
        skips.pop()  # the deepest features are the decoder's input
        for stage in self.decoder:
            skip = skips.pop()
            h = stage(h, embedding, size=skip.shape[2:])
            h = torch.cat([h, skip], dim=1)
        return self.conv_out(h).to(x.dtype)
