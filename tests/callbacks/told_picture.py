"""A network that is told a picture, as small as can be."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ToldPicture(nn.Module):
    """One convolution of x beside the picture, which is enlarged; what is not given counts as 0."""

    conditions = ("picture",)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor, time_signal: Tensor, picture: Tensor | None = None) -> Tensor:
        told = torch.zeros_like(x) if picture is None else F.interpolate(picture, x.shape[2:]).nan_to_num()
        return self.convolution(torch.cat([x, told], dim=1))
