"""The pieces U-Nets are made of. Feature maps ``h`` are ``(B, C, H, W)``, embeddings ``(B, E)``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def require(name: str, value: object, condition: bool, allowed: str) -> None:
    """Raise a ``ValueError`` that names the argument, what is allowed and what was given, unless ``condition``."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_inputs(x: Tensor, time_signal: Tensor, in_channels: int) -> None:
    """Check that ``x`` is ``(B, in_channels, H, W)`` and ``time_signal`` is ``(B,)``.

    Raises:
        ValueError: if they are not (a time signal of shape ``(1,)`` would broadcast without a word).
    """
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"x must have shape (batch, {in_channels}, height, width), got {tuple(x.shape)}")
    if time_signal.shape != x.shape[:1]:
        raise ValueError(f"time_signal must have shape ({x.shape[0]},) like the batch, got {tuple(time_signal.shape)}")


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalization with as many groups as possible: at most 32, of at least 4 channels each."""
    most = max(1, min(32, channels // 4))
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=affine)


def zero_init(module: nn.Module) -> None:
    """Set all parameters to zero, so that a residual branch (or a network) starts by adding nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


class ResBlock(nn.Module):
    """Residual block steered by an embedding: ``(skip(h) + f(h, e)) / √2``.

    ``f`` is norm → SiLU → 3×3 convolution → norm, scaled by ``1 + a(e)`` and shifted by ``b(e)`` (FiLM) → SiLU →
    dropout → 3×3 convolution, with group norms, and ``a``, ``b`` linear. The last convolution starts at zero, so the
    block starts as the identity up to the factor. The factor keeps the variance of a sum of two equal parts, so that
    features do not grow with depth. ``skip`` is the identity, or a 1×1 convolution where the channels differ.

    From: the BigGAN-like block of Dhariwal & Nichol 2021 (arXiv:2105.05233); the factor as in Song et al. 2021
    (arXiv:2011.13456) and EDM (Karras et al. 2022, arXiv:2206.00364).

    Args:
        in_channels: channels of ``h``.
        out_channels: channels of the result.
        embed_dim: size of the embedding ``e``.
        dropout: probability of zeroing a feature in training, in [0, 1).
    """

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(embed_dim, 2 * out_channels)
        self.norm_out = group_norm(out_channels, affine=False)  # its scale and shift are the FiLM's
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        zero_init(self.conv_out)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` and ``(B, embed_dim)`` to ``(B, out_channels, H, W)``."""
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        f = self.conv_in(F.silu(self.norm_in(h)))
        f = F.silu(self.norm_out(f) * (1 + scale) + shift)
        f = self.conv_out(self.dropout(f))
        return (self.skip(h) + f) * math.sqrt(0.5)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d) V of ``(B, heads, …, d)``, over the keys that a boolean mask leaves, if there is one."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # in bf16 the CPU's fused kernel is up to ten times slower backward than in float32
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
            return attended.to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """Every position looks at every other: ``(h + P softmax(Q Kᵀ / √d) V) / √2``, with d channels per head.

    ``Q``, ``K``, ``V`` are linear in the normalized ``h`` at each position, and ``P`` is linear and starts at zero.
    Time grows with ``(H W)²``; memory does not where torch has a fused kernel. Those kernels are differentiable once
    and backward only: for second or forward-mode derivatives, choose ``torch.nn.attention.SDPBackend.MATH``.

    From: Vaswani et al. 2017 (arXiv:1706.03762); in U-Nets for diffusion, Ho et al. 2020 (arXiv:2006.11239).

    Args:
        channels: channels of ``h``, a multiple of ``num_heads``.
        num_heads: heads that attend independently, each over ``channels / num_heads`` channels.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, num_heads: int = 4) -> None:
        super().__init__()
        divides = num_heads >= 1 and channels % num_heads == 0
        require("num_heads", num_heads, divides, f"a positive divisor of {channels} channels")
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        zero_init(self.project)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape."""
        # Positions as tokens, channels last: the layout that linear layers and fused attention take without copies.
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = _attend(q, k, v)
        attended = attended.transpose(1, 2).flatten(2)
        update = self.project(attended).transpose(1, 2).reshape(h.shape)
        return (h + update) * math.sqrt(0.5)


class CrossAttention(nn.Module):
    """Every position looks at the tokens of a context: ``(h + P softmax(Q Kᵀ / √d) V) / √2``, d channels per head.

    ``Q`` is linear in the normalized ``h`` at each position, ``K`` and ``V`` in each token as it is, and ``P`` is
    linear and starts at zero. The order of the tokens makes no difference.

    From: Vaswani et al. 2017 (arXiv:1706.03762); in U-Nets for diffusion, Rombach et al. 2022 (arXiv:2112.10752).

    Args:
        channels: channels of ``h``, a multiple of ``num_heads``.
        context_dim: numbers of a token.
        num_heads: heads that attend independently, each over ``channels / num_heads`` channels.
    """

    def __init__(self, channels: int, context_dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context_dim, 2 * channels)
        self.project = nn.Linear(channels, channels)
        zero_init(self.project)

    def forward(self, h: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape.

        Args:
            h: feature maps.
            context: tokens ``(B, L, context_dim)``.
            mask: which of them are looked at, bool ``(B, L)``; of each example one at least.
        """
        positions = self.norm(h).flatten(2).transpose(1, 2)
        q = self.query(positions).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.key_value(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = _attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)
        update = self.project(attended).transpose(1, 2).reshape(h.shape)
        return (h + update) * math.sqrt(0.5)


class Block(nn.Module):
    """A residual block, of another ``h`` beside its own where there is one, then attention where there are heads.

    It is attention to ``h`` itself and then, with ``context_dim``, to the tokens of a context.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int,
        dropout: float,
        num_heads: int,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.residual = ResBlock(in_channels, out_channels, embed_dim, dropout)
        self.attention = SelfAttention(out_channels, num_heads) if num_heads else nn.Identity()
        self.cross_attention = (
            CrossAttention(out_channels, context_dim, num_heads) if num_heads and context_dim is not None else None
        )

    def forward(
        self,
        h: Tensor,
        embedding: Tensor,
        skip: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map ``(B, …, H, W)`` and ``(B, embed_dim)`` to ``(B, out_channels, H, W)``.

        Args:
            h: feature maps; with those of ``skip``, ``in_channels``.
            embedding: which steers the residual block.
            skip: feature maps put behind those of ``h``.
            context: tokens ``(B, L, context_dim)``, which must be given if there is attention to them.
            mask: which of them are looked at, ``(B, L)``.
        """
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.attention(self.residual(h, embedding))
        return h if self.cross_attention is None else self.cross_attention(h, context, mask)


class Downsample(nn.Module):
    """Halve the resolution, odd sizes rounded up, by a 3×3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ⌈H/2⌉, ⌈W/2⌉)``."""
        return self.conv(h)


class Upsample(nn.Module):
    """Bring to a given resolution by nearest neighbours, then smooth by a 3×3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, h: Tensor, size: torch.Size) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, *size)``."""
        return self.conv(F.interpolate(h, size=size, mode="nearest"))
