"""Embeddings of the time signal t: vectors in which nearby times are told apart by a linear layer.

Both return ``(B, dim)`` in float32 (float64 for float64 times), under autocast too: the phases reach hundreds of
radians, where bfloat16 resolves no better than one.
"""

import math

import torch
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import require


def _at_least_float32(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


class GaussianFourierFeatures(nn.Module):
    """Random Fourier features ``[sin(2π w t), cos(2π w t)]`` with fixed frequencies ``w ~ N(0, scale²)``.

    The frequencies are a parameter without gradient: saved with the weights, and by that sign left alone by
    optimizers, weight decay and weight averaging.

    From: Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains" (arXiv:2006.10739); for diffusion times, Song et al. 2021 (arXiv:2011.13456).

    Args:
        dim: size of the embedding, even and positive; there are ``dim // 2`` frequencies.
        scale: standard deviation of the frequencies, positive. Times closer than about ``1 / (2π scale)`` look alike.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        require("dim", dim, dim >= 2 and dim % 2 == 0, "a positive even number")
        require("scale", scale, 0 < scale < math.inf, "positive")
        self.dim = dim
        self.scale = scale
        self.frequencies = nn.Parameter(scale * torch.randn(dim // 2), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``(B,)`` as ``(B, dim)``."""
        phases = 2 * math.pi * _at_least_float32(t)[:, None] * _at_least_float32(self.frequencies)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)


class SinusoidalEmbedding(nn.Module):
    """The transformer's embedding ``[sin(ω_i s t), cos(ω_i s t)]`` of the scaled time, s = ``scale``.

    The n = ``dim // 2`` angular frequencies ``ω_i = max_period^(-i / (n - 1))`` fall from 1 to ``1 / max_period``, as
    in DDPM. They are made for integers 0…1000; times in [0, 1] must be scaled (the default), otherwise the embedding
    hardly depends on them.

    From: Vaswani et al. 2017 (arXiv:1706.03762); Ho et al. 2020 (arXiv:2006.11239).

    Args:
        dim: size of the embedding, even and at least 4.
        scale: factor on the time, positive.
        max_period: ratio of the highest frequency to the lowest, greater than 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, dim: int, scale: float = 1000.0, max_period: float = 10000.0) -> None:
        super().__init__()
        require("dim", dim, dim >= 4 and dim % 2 == 0, "an even number, at least 4")
        require("scale", scale, 0 < scale < math.inf, "positive")
        require("max_period", max_period, 1 < max_period < math.inf, "greater than 1")
        self.dim = dim
        self.scale = scale
        self.max_period = max_period

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``(B,)`` as ``(B, dim)``."""
        t = _at_least_float32(t)
        # Made anew at each call: as a buffer they would lose their precision with a network cast to bfloat16.
        exponents = torch.linspace(0, 1, self.dim // 2, device=t.device, dtype=t.dtype)
        phases = self.scale * t[:, None] * torch.exp(-math.log(self.max_period) * exponents)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)
