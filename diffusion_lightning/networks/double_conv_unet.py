"""The U-Net of the DDPM notebook: double convolutions, max-pool down, bilinear up, attention with feed-forward."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import check_inputs, require
from diffusion_lightning.networks.embeddings import SinusoidalEmbedding


class DoubleConv(nn.Module):
    """``f(h)``, or ``GELU(h + f(h))`` if residual: f is 3×3 convolution → norm → GELU → 3×3 convolution → norm.

    The norms are group norms of a single group, over all channels and positions, and the convolutions have no bias.
    Sizes stay.

    Args:
        in_channels: channels of ``h``.
        out_channels: channels of the result; ``in_channels`` if residual.
        middle_channels: channels between the convolutions; ``out_channels`` if left out.
        residual: whether ``h`` is added.
    """

    def __init__(
        self, in_channels: int, out_channels: int, middle_channels: int | None = None, residual: bool = False
    ) -> None:
        super().__init__()
        middle = out_channels if middle_channels is None else middle_channels
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, padding=1, bias=False),
            nn.GroupNorm(1, middle),
            nn.GELU(),
            nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        return F.gelu(h + self.layers(h)) if self.residual else self.layers(h)


class TransformerBlock(nn.Module):
    """Self-attention over the positions, then a feed-forward layer: ``a = h + P A(h)``, ``a + W₂ GELU(W₁ LN(a))``.

    ``A`` is ``softmax(Q Kᵀ / √d) V`` with d channels per head; ``Q``, ``K``, ``V`` are linear in the layer-normalized
    ``h`` at each position, ``P`` is linear, and ``W₁`` doubles the channels. In training each attention weight is
    dropped with probability ``dropout`` and the others scaled by ``1 / (1 − dropout)``.

    Time grows with ``(H W)²``; memory does not where torch has a fused kernel. On the CPU it has none with dropout:
    there a training step keeps ``num_heads (H W)²`` weights for each image.

    From: Vaswani et al. 2017 (arXiv:1706.03762), with the norms in front.

    Args:
        channels: channels of ``h``, a multiple of ``num_heads``.
        num_heads: heads that attend independently, each over ``channels / num_heads`` channels.
        dropout: probability in [0, 1).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape."""
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        tokens = tokens + self.project(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.feed_forward(tokens)
        return tokens.transpose(1, 2).reshape(h.shape)


class _Stage(nn.Module):
    """One resolution: ``double(residual(h)) + W SiLU(e)`` in every position, then attention where there are heads."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int,
        time_dim: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels, middle_channels),
        )
        self.shift = nn.Linear(time_dim, out_channels)
        self.attention = TransformerBlock(out_channels, num_heads, dropout) if num_heads else nn.Identity()

    def forward(self, h: Tensor, time_features: Tensor) -> Tensor:
        return self.attention(self.convs(h) + self.shift(F.silu(time_features))[:, :, None, None])


class DoubleConvUNet(nn.Module):
    """The DDPM notebook's U-Net, for images of any size.

    Encoder: a double convolution at full resolution, then at each next level, half as large (odd sizes rounded down),
    max-pooling, a residual double convolution and a double convolution. Middle: three double convolutions, by way of
    ``bottleneck`` channels. Decoder: at each level but the coarsest, bilinear upsampling to the size the encoder had
    there (corners aligned), beside it the encoder's features, then the same two double convolutions, the second with
    half the channels in its middle. Last, a 1×1 convolution. Each level of the encoder but 0, and each of the decoder,
    is shifted by a linear layer of ``SiLU(e(t))``, where ``e`` is the sinusoidal embedding, with no layer of its own.

    With ``attention_levels=(0, 1, 2, 3)`` it is the notebook's network and has its number of trainable parameters,
    23,563,011. With the defaults, without attention at full resolution, it has 23,529,539. On
    64×64 the levels work at 64, 32, 16 and 8.

    From: the DDPM notebook among the founding documents. It differs in how attention is computed, without a matrix of
    ``(H W)²`` weights, and by the frequencies of the time embedding, which fall to 1/10000 here and to 1/8660 there.

    Args:
        in_channels: channels of the images, and of the output.
        channels: channels of every level of the encoder, two or more; level 0 works at full resolution.
        bottleneck: channels in the middle.
        attention_levels: levels that attend, in encoder and decoder. Level 0 attends in the decoder only, the last
            level in the encoder only, since the other part has no stage there.
        num_heads: attention heads, a divisor of the channels of every stage that attends. These are ``channels[i]`` in
            the encoder, and ``channels[i - 1]`` in the decoder (``channels[0]`` at level 0).
        dropout: probability of dropping an attention weight in training, in [0, 1).
        time_dim: size of the time embedding, even and at least 4.
        time_scale: factor on the time before its embedding, positive; 1000 is for times in [0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 256),
        bottleneck: int = 512,
        attention_levels: Sequence[int] = (1, 2, 3),
        num_heads: int = 4,
        dropout: float = 0.2,
        time_dim: int = 128,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        require("in_channels", in_channels, in_channels >= 1, "at least 1")
        require("channels", channels, len(channels) >= 2 and min(channels) >= 1, "two or more positive numbers")
        require("bottleneck", bottleneck, bottleneck >= 1, "at least 1")
        levels = range(len(channels))
        require("attention_levels", attention_levels, set(attention_levels) <= set(levels), f"among {list(levels)}")
        # A stage of the decoder already has the channels that the next finer one takes.
        encoded = {level: channels[level] for level in levels[1:]}
        decoded = {level: channels[max(level - 1, 0)] for level in reversed(levels[:-1])}
        attending = [part[level] for part in (encoded, decoded) for level in part if level in attention_levels]
        divides = num_heads >= 1 and all(c % num_heads == 0 for c in attending)
        require("num_heads", num_heads, divides, f"a positive divisor of the attending channels {attending}")
        require("dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
        require("time_dim", time_dim, time_dim >= 4 and time_dim % 2 == 0, "an even number, at least 4")
        require("time_scale", time_scale, 0 < time_scale < math.inf, "positive")
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.bottleneck = bottleneck
        self.attention_levels = tuple(attention_levels)
        self.num_heads = num_heads
        self.dropout = dropout
        self.time_dim = time_dim
        self.time_scale = time_scale

        def stage(level: int, in_width: int, out_width: int, middle_width: int) -> _Stage:
            heads = num_heads if level in attention_levels else 0
            return _Stage(in_width, out_width, middle_width, time_dim, heads, dropout)

        self.time_features = SinusoidalEmbedding(time_dim, time_scale)
        self.conv_in = DoubleConv(in_channels, channels[0])
        self.encoder = nn.ModuleList([stage(level, channels[level - 1], c, c) for level, c in encoded.items()])
        self.middle = nn.Sequential(
            DoubleConv(channels[-1], bottleneck),
            DoubleConv(bottleneck, bottleneck),
            DoubleConv(bottleneck, channels[-2]),
        )
        self.decoder = nn.ModuleList(
            [stage(level, 2 * channels[level], c, channels[level]) for level, c in decoded.items()]
        )
        self.conv_out = nn.Conv2d(channels[0], in_channels, 1)

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: images ``(B, in_channels, H, W)``, no side below ``2^(levels − 1)``: 8 with four levels.
            time_signal: times ``(B,)``.
            labels: must be None, this network is unconditional.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if labels are given, the images are too small to be halved that often, or a shape is wrong.
        """
        check_inputs(x, time_signal, self.in_channels)
        if labels is not None:
            raise ValueError("labels must be None: DoubleConvUNet is unconditional")
        smallest = 2 ** len(self.encoder)
        if min(x.shape[2:]) < smallest:
            size = f"{smallest}×{smallest}"
            raise ValueError(f"x must be at least {size} for {len(self.channels)} levels, got {tuple(x.shape)}")

        time_features = self.time_features(time_signal).to(x.dtype)
        h, skips = self.conv_in(x), []
        for stage in self.encoder:
            skips.append(h)
            h = stage(F.max_pool2d(h, 2), time_features)
        h = self.middle(h)
        for stage in self.decoder:
            skip = skips.pop()
            h = F.interpolate(h, size=skip.shape[2:], mode="bilinear", align_corners=True)
            h = stage(torch.cat([skip, h], dim=1), time_features)
        return self.conv_out(h).to(x.dtype)
