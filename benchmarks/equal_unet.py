"""diffusers' UNet2DModel as deep as one of our U-Nets, and with as many weights as its widths allow."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lightning import UNet

GROUPS = 8
"""Of its group norms: widths are multiples of it."""


class EqualUNet(nn.Module):
    """UNet2DModel, called as our networks are; it takes no notice of the labels.

    It has the levels, the residual blocks and the heads of ``like``, attends where that does, and folds squares of
    pixels into channels as that does. Its widths are in the same proportion, so large that the number of trainable
    weights comes as near as it can.
    """

    def __init__(self, like: UNet) -> None:
        super().__init__()
        self.patch_size = like.patch_size
        wanted = weights(like)
        widths = range(GROUPS, 2 * like.channels[0] + GROUPS, GROUPS)
        width = min(widths, key=lambda width: abs(weights(_empty(like, width)) - wanted))
        self.unet = UNet2DModel(**_settings(like, width))

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self.unet(F.pixel_unshuffle(x, self.patch_size), time_signal).sample
        return F.pixel_shuffle(output, self.patch_size)


def weights(network: nn.Module) -> int:
    """How many are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _settings(like: UNet, width: int) -> dict[str, Any]:
    pixels = like.in_channels * like.patch_size**2
    channels = [max(1, round(width * c / like.channels[0] / GROUPS)) * GROUPS for c in like.channels]
    attends = [level in like.attention_levels for level in range(len(channels))]
    return {
        "in_channels": pixels,
        "out_channels": pixels,
        "block_out_channels": channels,
        "layers_per_block": like.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "add_attention": like.middle_attention,
        "attention_head_dim": channels[-1] // like.num_heads,
        "norm_num_groups": GROUPS,
        "dropout": like.dropout,
    }


def _empty(like: UNet, width: int) -> UNet2DModel:
    with torch.device("meta"):
        return UNet2DModel(**_settings(like, width))
