"""A network for points: a few linear layers, the time among their inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import require


class MLP(nn.Module):
    """``[x, t]`` through linear layers with softplus between them, for points ``(B, dim)``.

    The time signal enters as one more coordinate, as it is, so it should be of the size of the others: σ, t in [0, 1],
    log σ; not the number of a step. With the defaults the layers are 3 → 128 → 128 → 2, with 17,282 parameters.

    From: the founding document on NCSN and DDPM for points, whose network is that of the toy example of Song & Ermon
    2019 (arXiv:1907.05600, appendix B.1) with the time added.

    Args:
        dim: coordinates of a point, and of the output.
        hidden: widths of the layers in between, one or more.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, dim: int = 2, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        require("dim", dim, dim >= 1, "at least 1")
        require("hidden", hidden, len(hidden) >= 1 and min(hidden) >= 1, "one or more positive numbers")
        self.dim = dim
        self.hidden = tuple(hidden)

        self.layers = nn.Sequential()
        width = dim + 1
        for wider in self.hidden:
            self.layers.extend([nn.Linear(width, wider), nn.Softplus()])
            width = wider
        self.layers.append(nn.Linear(width, dim))

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: points ``(B, dim)``.
            time_signal: times ``(B,)``.
            labels: must be None, this network is unconditional.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if labels are given, or a shape is wrong.
        """
        require("x", tuple(x.shape), x.ndim == 2 and x.shape[1] == self.dim, f"of shape (batch, {self.dim})")
        require("time_signal", tuple(time_signal.shape), time_signal.shape == x.shape[:1], "of shape (batch,) like x")
        if labels is not None:
            raise ValueError("labels must be None: MLP is unconditional")
        return self.layers(torch.cat([x, time_signal[:, None].to(x.dtype)], dim=1)).to(x.dtype)
