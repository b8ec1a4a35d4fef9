"""A U-Net of residual blocks with attention, for images of any size."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lightning.networks.blocks import (
    Block,
    Downsample,
    Upsample,
    check_inputs,
    group_norm,
    require,
    zero_init,
)
from diffusion_lightning.networks.conditioning import (
    PictureBeside,
    TakesVector,
    TokenContext,
    VectorEmbedding,
    check_told,
    embed_class,
    told_of,
)
from diffusion_lightning.networks.embeddings import GaussianFourierFeatures, SinusoidalEmbedding

_DEFAULT_TIME_SCALE = {"sinusoidal": 1000.0, "fourier": 16.0}


class UNet(TakesVector, nn.Module):
    """U-Net of residual blocks, steered by the time and, if asked for, by conditions and by an augmentation.

    Encoder: a 3×3 convolution, then at every level ``num_res_blocks`` residual blocks, with a strided convolution
    between levels. Middle: residual block, attention, residual block. Decoder: at every level, coarsest first,
    ``num_res_blocks + 1`` residual blocks, each of which takes one of the encoder's outputs beside its own input, so
    that all are consumed; between levels, nearest-neighbour upsampling to the size the encoder had there. The output
    convolution starts at zero.

    Time and class enter every residual block through ``e = SiLU(MLP(embedding(t)) + class embedding)``. Called
    without labels, a conditional network uses a learned null class, whose index is ``num_classes``: that gives the
    unconditional half of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), and labels of that index
    drop the class of single examples in training. Numbers that say how an image was augmented in training are added to
    ``embedding(t)``, weighted without a bias: without them, as in sampling, the image is one that was not.

    Of the other conditions (:mod:`diffusion_lightning.conditions`) a vector is standardized by the numbers that
    :meth:`standardize` takes, and added to ``e`` by two linear layers; a picture of any size is resized to x and put
    beside it, as more channels; and tokens are looked at by cross-attention behind each self-attention, as a set: what
    their order says must be in them. Each has a learned null, used where it is not given: without the argument for all
    examples, by NaN for single ones.

    Attention is placed by level and not by resolution, since the resolutions follow from the images: on 28×28 the
    levels 0, 1, 2 work at 28×28, 14×14, 7×7 with ``patch_size=1``, at 14×14, 7×7, 4×4 with ``patch_size=2``.

    From: Ho et al. 2020 (arXiv:2006.11239), with the blocks of Dhariwal & Nichol 2021 (arXiv:2105.05233).

    Args:
        in_channels: channels of the images, and of the output.
        channels: channels of every level; level 0 works at full resolution (after patching), each next one at half.
        num_res_blocks: residual blocks of every level of the encoder; the decoder has one more.
        attention_levels: levels with attention after every residual block, encoder and decoder.
        middle_attention: whether the middle attends.
        num_heads: attention heads, a divisor of the channels of every level that attends.
        embed_dim: size of the embedding, even and at least 4.
        dropout: probability of zeroing a feature inside residual blocks in training, in [0, 1).
        patch_size: side p of the squares of pixels folded into channels at the input and unfolded at the output, so
            that the network works on H/p × W/p with p² in_channels channels. 2 makes it about four times cheaper.
        num_classes: number of classes, or None for a network without.
        time_embedding: ``"sinusoidal"`` (DDPM) or ``"fourier"`` (random frequencies, saved and fixed).
        time_scale: factor on the time in the sinusoidal embedding (default 1000: times in [0, 1]), or standard
            deviation of the random frequencies (default 16). Positive.
        checkpointing: in training, keep the input of each block alone and compute what is inside once more in the
            backward pass. Memory for activations then grows with the blocks' inputs alone, and each step takes about
            one more forward pass. The gradients are the same, dropout included.
        augment_dim: how many numbers tell of an image's augmentation, or None for a network that is told nothing.
        condition_dim: how many numbers the vector has, or None for a network without.
        condition_channels: channels of the picture beside x, or None for a network without.
        context_dim: how many numbers a token has, or None for a network without. Needs a level that attends.

    Attributes:
        conditions: the names of what it is told of, as in :mod:`diffusion_lightning.conditions`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (64, 128, 128),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        num_heads: int = 4,
        embed_dim: int = 256,
        dropout: float = 0.0,
        patch_size: int = 1,
        num_classes: int | None = None,
        time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        time_scale: float | None = None,
        checkpointing: bool = False,
        augment_dim: int | None = None,
        condition_dim: int | None = None,
        condition_channels: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        levels = range(len(channels))
        require("in_channels", in_channels, in_channels >= 1, "at least 1")
        require("channels", channels, len(channels) >= 1 and min(channels) >= 1, "one or more positive numbers")
        require("num_res_blocks", num_res_blocks, num_res_blocks >= 1, "at least 1")
        require("attention_levels", attention_levels, set(attention_levels) <= set(levels), f"among {list(levels)}")
        attending = [channels[level] for level in attention_levels] + [channels[-1]] * middle_attention
        divides = num_heads >= 1 and all(c % num_heads == 0 for c in attending)
        require("num_heads", num_heads, divides, f"a positive divisor of the attending channels {attending}")
        require("embed_dim", embed_dim, embed_dim >= 4 and embed_dim % 2 == 0, "an even number, at least 4")
        require("dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
        require("patch_size", patch_size, patch_size >= 1, "at least 1")
        require("num_classes", num_classes, num_classes is None or num_classes >= 1, "None or at least 1")
        require("time_embedding", time_embedding, time_embedding in _DEFAULT_TIME_SCALE, "'sinusoidal' or 'fourier'")
        require("time_scale", time_scale, time_scale is None or 0 < time_scale < math.inf, "None or positive")
        sizes = {
            "augment_dim": augment_dim,
            "condition_dim": condition_dim,
            "condition_channels": condition_channels,
            "context_dim": context_dim,
        }
        for name, size in sizes.items():
            require(name, size, size is None or size >= 1, "None or at least 1")
        of_use = context_dim is None or len(attending) > 0
        require("context_dim", context_dim, of_use, "None where no level attends, for attention looks at the tokens")
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.num_res_blocks = num_res_blocks
        self.attention_levels = tuple(attention_levels)
        self.middle_attention = middle_attention
        self.num_heads = num_heads
        self.embed_dim = embed_dim
        self.dropout = dropout
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.null_class = num_classes
        self.time_embedding = time_embedding
        self.time_scale = time_scale
        self.checkpointing = checkpointing
        self.augment_dim = augment_dim
        self.condition_dim = condition_dim
        self.condition_channels = condition_channels
        self.context_dim = context_dim
        self.conditions = told_of(self)

        scale = _DEFAULT_TIME_SCALE[time_embedding] if time_scale is None else time_scale
        features = SinusoidalEmbedding if time_embedding == "sinusoidal" else GaussianFourierFeatures
        self.time_features = features(embed_dim, scale)
        self.time_mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, embed_dim)
        self.augmentation = None if augment_dim is None else nn.Linear(augment_dim, embed_dim, bias=False)
        self.vector_embedding = None if condition_dim is None else VectorEmbedding(condition_dim, embed_dim)
        self.picture_beside = None if condition_channels is None else PictureBeside(condition_channels)
        self.token_context = None if context_dim is None else TokenContext(context_dim)

        def block(in_width: int, out_width: int, attend: bool) -> Block:
            return Block(in_width, out_width, embed_dim, dropout, num_heads if attend else 0, context_dim)

        pixels = in_channels * patch_size**2
        width = self.channels[0]
        self.conv_in = nn.Conv2d(pixels + (condition_channels or 0) * patch_size**2, width, 3, padding=1)
        skip_widths = [width]

        self.encoder = nn.ModuleList()
        for level in levels:
            if level > 0:
                self.encoder.append(Downsample(width, width))
                skip_widths.append(width)
            for _ in range(num_res_blocks):
                self.encoder.append(block(width, self.channels[level], level in attention_levels))
                width = self.channels[level]
                skip_widths.append(width)

        self.middle = nn.ModuleList([block(width, width, middle_attention), block(width, width, False)])

        self.decoder = nn.ModuleList()
        for level in reversed(levels):
            for _ in range(num_res_blocks + 1):
                self.decoder.append(block(width + skip_widths.pop(), self.channels[level], level in attention_levels))
                width = self.channels[level]
            if level > 0:
                self.decoder.append(Upsample(width, width))

        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, pixels, 3, padding=1)
        zero_init(self.conv_out)

    def forward(
        self,
        x: Tensor,
        time_signal: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        vector: Tensor | None = None,
        picture: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: images ``(B, in_channels, H, W)`` of any size whose sides are multiples of ``patch_size``.
            time_signal: times ``(B,)``.
            labels: classes ``(B,)``, int64 in 0…``num_classes`` (the last is the null class), or None for the null
                class everywhere. Must be None for a network without classes.
            augment_labels: ``(B, augment_dim)``; None, the same as zeros, for images as they are. Must be None for a
                network without ``augment_dim``.
            vector: ``(B, condition_dim)``, a row with a NaN for none, or None for none everywhere.
            picture: ``(B, condition_channels, H', W')`` of any size, one with a NaN for none, or None.
            tokens: ``(B, L, context_dim)``, each with a NaN for padding, or None. An example of padding alone has none.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if a condition is given to a network that has no use for it, or a shape is wrong.
        """
        check_inputs(x, time_signal, self.in_channels)
        if any(side % self.patch_size for side in x.shape[2:]):
            sides = "height and width must be multiples of"
            raise ValueError(f"{sides} patch_size={self.patch_size}, got x of shape {tuple(x.shape)}")
        check_told(self, x, labels=labels, vector=vector, picture=picture, tokens=tokens)
        embedding = self._embed(x, self.time_features(time_signal).to(x.dtype), labels, augment_labels, vector)
        context = () if self.token_context is None else self.token_context(x, tokens)

        inputs = x if self.picture_beside is None else self.picture_beside(x, picture)
        h = self.conv_in(F.pixel_unshuffle(inputs, self.patch_size))
        skips = [h]
        for module in self.encoder:
            h = module(h) if isinstance(module, Downsample) else self._run(module, h, embedding, None, *context)
            skips.append(h)
        for module in self.middle:
            h = self._run(module, h, embedding, None, *context)
        for module in self.decoder:
            if isinstance(module, Upsample):
                h = module(h, size=skips[-1].shape[2:])
            else:
                h = self._run(module, h, embedding, skips.pop(), *context)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch_size).to(x.dtype)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """The block's output; with checkpointing, of what it computes nothing is kept but its inputs."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _embed(
        self,
        x: Tensor,
        time_features: Tensor,
        labels: Tensor | None,
        augment_labels: Tensor | None,
        vector: Tensor | None,
    ) -> Tensor:
        if self.augmentation is None:
            if augment_labels is not None:
                raise ValueError("augment_labels must be None: this UNet is told no augmentation (augment_dim=None)")
        else:
            if augment_labels is None:  # zeros, not nothing: DDP wants every weight to be used
                augment_labels = time_features.new_zeros(time_features.shape[0], self.augmentation.in_features)
            time_features = time_features + self.augmentation(augment_labels.to(time_features.dtype))
        embedding = self.time_mlp(time_features)
        if self.class_embedding is not None:
            embedding = embedding + embed_class(self.class_embedding, labels)
        if self.vector_embedding is not None:
            embedding = embedding + self.vector_embedding(x, vector)
        return F.silu(embedding)
