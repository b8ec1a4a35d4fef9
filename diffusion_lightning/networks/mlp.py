"""A network for points: a few linear layers, the time among their inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import require
from diffusion_lightning.networks.conditioning import TakesVector, VectorEmbedding, check_told, embed_class, told_of


class MLP(TakesVector, nn.Module):
    """``[x, t]`` through linear layers with softplus between them, for points ``(B, dim)``.

    The time signal enters as one more coordinate, as it is, so it should be of the size of the others: σ, t in [0, 1],
    log σ; not the number of a step. With the defaults the layers are 3 → 128 → 128 → 2, with 17,282 parameters.

    A class and a vector, if asked for, are embedded, and added to what the first layer gives. Called without, the
    network uses a learned null class, whose index is ``num_classes``, and a learned embedding of no vector; a row of
    vectors with a NaN in it is none, too.

    From: the founding document on NCSN and DDPM for points, whose network is that of the toy example of Song & Ermon
    2019 (arXiv:1907.05600, appendix B.1) with the time added.

    Args:
        dim: coordinates of a point, and of the output.
        hidden: widths of the layers in between, one or more.
        num_classes: number of classes, or None for a network without.
        condition_dim: how many numbers the vector has, or None for a network without.

    Attributes:
        conditions: the names of what it is told of, as in :mod:`diffusion_lightning.conditions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int = 2,
        hidden: Sequence[int] = (128, 128),
        num_classes: int | None = None,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        require("dim", dim, dim >= 1, "at least 1")
        require("hidden", hidden, len(hidden) >= 1 and min(hidden) >= 1, "one or more positive numbers")
        require("num_classes", num_classes, num_classes is None or num_classes >= 1, "None or at least 1")
        require("condition_dim", condition_dim, condition_dim is None or condition_dim >= 1, "None or at least 1")
        self.dim = dim
        self.hidden = tuple(hidden)
        self.num_classes = num_classes
        self.null_class = num_classes
        self.condition_dim = condition_dim
        self.conditions = told_of(self)

        self.layers = nn.Sequential()
        width = dim + 1
        for wider in self.hidden:
            self.layers.extend([nn.Linear(width, wider), nn.Softplus()])
            width = wider
        self.layers.append(nn.Linear(width, dim))
        first = self.hidden[0]
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, first)
        self.vector_embedding = None if condition_dim is None else VectorEmbedding(condition_dim, first)

    def forward(
        self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: points ``(B, dim)``.
            time_signal: times ``(B,)``.
            labels: classes ``(B,)``, int64 in 0…``num_classes`` (the last is the null class), or None for the null
                class everywhere. Must be None for a network without classes.
            vector: ``(B, condition_dim)``, a row with a NaN for none, or None for none everywhere. Must be None for a
                network without ``condition_dim``.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if a condition is given to a network that has no use for it, or a shape is wrong.
        """
        require("x", tuple(x.shape), x.ndim == 2 and x.shape[1] == self.dim, f"of shape (batch, {self.dim})")
        require("time_signal", tuple(time_signal.shape), time_signal.shape == x.shape[:1], "of shape (batch,) like x")
        check_told(self, x, labels=labels, vector=vector)
        h = self.layers[0](torch.cat([x, time_signal[:, None].to(x.dtype)], dim=1))
        if self.class_embedding is not None:
            h = h + embed_class(self.class_embedding, labels)
        if self.vector_embedding is not None:
            h = h + self.vector_embedding(x, vector)
        return self.layers[1:](h).to(x.dtype)
