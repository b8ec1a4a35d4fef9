"""What networks that take conditions share: the checks, and the parts that read a vector, a picture and tokens.

Of numbers NaN stands for what is not given, as :mod:`diffusion_lightning.conditions` has it, and each part has a learnt
null in the place of that. A NaN is replaced before anything is computed of it, so that none comes into a gradient, and
every weight is used whatever is given, as DDP wants it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lightning.conditions import ARGUMENTS, CONDITIONS


def told_of(network: nn.Module) -> tuple[str, ...]:
    """The names of the conditions that a network has an argument for which is not None."""
    return tuple(name for name in CONDITIONS if getattr(network, ARGUMENTS[name], None) is not None)


def check_told(network: nn.Module, x: Tensor, **conditions: Tensor | None) -> None:
    """Check the conditions that a network is called with, by their names; None is one that is not given.

    Raises:
        ValueError: naming one that the network is not told of, or that is of another type or shape than it takes.
    """
    for name, value in conditions.items():
        if value is None:
            continue
        argument = ARGUMENTS[name]
        size = getattr(network, argument, None)
        if size is None:
            kind = "has no classes" if name == "labels" else f"takes no {name}"
            raise ValueError(f"{name} must be None: this {type(network).__name__} {kind} ({argument}=None)")
        batch, shape = x.shape[0], value.shape
        fits = value.ndim > 0 and shape[0] == batch
        if name == "labels":
            fits = fits and value.ndim == 1 and value.dtype in (torch.int64, torch.int32)
            right = f"int64 ({batch},)"
        elif name == "vector":
            fits = fits and value.ndim == 2 and shape[1] == size
            right = f"floats ({batch}, {size})"
        elif name == "picture":
            fits = fits and value.ndim == x.ndim and shape[1] == size and value.numel() > 0
            right = f"floats ({batch}, {size}, height, width)"
        else:
            fits = fits and value.ndim == 3 and shape[2] == size
            right = f"floats ({batch}, length, {size})"
        if not (fits and (name == "labels" or value.is_floating_point())):
            given = f"{str(value.dtype).removeprefix('torch.')} {tuple(shape)}"
            raise ValueError(f"{name} must be {right}, one for each example, by {argument}={size}; got {given}")


def embed_class(embedding: nn.Embedding, labels: Tensor | None) -> Tensor:
    """The embeddings of classes, ``(B, E)``; of the null class, the last one, ``(E,)``, without labels."""
    return embedding.weight[-1] if labels is None else embedding(labels)


class VectorEmbedding(nn.Module):
    """A vector, standardized, through two linear layers with SiLU between them; a learnt embedding where there is none.

    Args:
        dim: D, numbers of a vector.
        embed_dim: E, of the embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.layers = nn.Sequential(nn.Linear(dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.null = nn.Parameter(torch.zeros(embed_dim))

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and the standard deviation of vectors, ``(D,)`` each; a standard deviation of 0 counts as 1.

        Raises:
            ValueError: for another shape, numbers that are not finite, or a negative standard deviation.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape:
                raise ValueError(f"{name} must be of shape {tuple(self.mean.shape)}, got {tuple(value.shape)}")
            if not value.isfinite().all() or (name == "std" and (value < 0).any()):
                numbers = "finite numbers" if name == "mean" else "finite numbers, 0 or above"
                raise ValueError(f"{name} must be {numbers}, got {value.tolist()}")
        self.mean.copy_(mean)
        std = std.to(self.std)
        self.std.copy_(torch.where(std == 0, 1, std))

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Map ``(B, D)``, in which a row with a NaN is none, to ``(B, E)``; None is none for each example of x."""
        if vector is None:
            vector = x.new_full((x.shape[0], len(self.mean)), torch.nan)
        given = ~vector.isnan().any(1, keepdim=True)
        # in the vector's own precision, for numbers far from 0 lose their differences in bf16
        standardized = (torch.where(given, vector, 0) - self.mean) / self.std
        return torch.where(given, self.layers(standardized.to(x.dtype)), self.null)


class TakesVector:
    """A network whose vectors, if it takes any, are standardized by numbers that it is given."""

    vector_embedding: VectorEmbedding | None

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and the standard deviation, ``(condition_dim,)`` each, by which vectors are standardized.

        A standard deviation of 0 counts as 1. The state dict holds them.

        Raises:
            ValueError: for another shape, numbers that are not finite, or a network that takes no vector.
        """
        if self.vector_embedding is None:
            raise ValueError(f"vector: this {type(self).__name__} takes none to standardize (condition_dim=None)")
        self.vector_embedding.standardize(mean, std)


class PictureBeside(nn.Module):
    """A picture of any size beside x, as more channels of it; a learnt value of each channel where there is none.

    It is brought to the size of x by linear interpolation, which where it is larger averages over as many more of its
    pixels (antialiasing), so that none is passed over.

    Args:
        channels: C, of the picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, picture: Tensor | None) -> Tensor:
        """Put ``(B, C, H', W')`` behind the channels of x ``(B, …, H, W)``; a picture with a NaN in it is none."""
        if picture is None:
            picture = x.new_full((x.shape[0], len(self.null), *x.shape[2:]), torch.nan)
        given = ~picture.flatten(1).isnan().any(1)[:, None, None, None]
        picture = torch.where(given, picture, 0)
        if picture.shape[2:] != x.shape[2:]:
            # there is no such kernel for bf16 on a CPU
            exact = picture.to(torch.promote_types(picture.dtype, torch.float32))
            picture = F.interpolate(exact, size=x.shape[2:], mode="bilinear", antialias=True)
        return torch.cat([x, torch.where(given, picture.to(x.dtype), self.null.to(x.dtype))], dim=1)


class TokenContext(nn.Module):
    """Tokens, with a learnt one before them to be looked at by examples that have none.

    Args:
        dim: D, numbers of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of tokens ``(B, L, D)``, in which one with a NaN is padding, what attention looks at.

        Returns:
            The tokens behind the null ``(B, 1 + L, D)``, padding as zeros, and which of them are looked at
            ``(B, 1 + L)``: those that are given, or else the null alone.
        """
        if tokens is None:
            tokens = x.new_empty(x.shape[0], 0, len(self.null))
        given = ~tokens.isnan().any(2)
        null = self.null.to(x.dtype).expand(x.shape[0], 1, -1)
        context = torch.cat([null, torch.where(given[..., None], tokens, 0).to(x.dtype)], dim=1)
        return context, torch.cat([~given.any(1, keepdim=True), given], dim=1)
