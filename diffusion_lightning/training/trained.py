"""A trained model as it draws samples: with Lightning around it or without."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.data.shares import in_shares
from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint
from diffusion_lightning.training.recipe import build


class DrawsSamples:
    """Whatever draws samples: by which denoiser and sampler, of which shape, and of which classes."""

    denoiser: NetworkDenoiser
    sampler: Sampler
    """Draws wherever no other is named."""
    shape: tuple[int, ...] | None
    """Of one example; None if it is not known yet."""
    class_names: list[str] | None
    """What each label stands for, as the training data say; None where they have no names."""
    class_counts: list[int] | None
    """How many training examples have each label; None if the network has no classes, or it is not known."""

    device: torch.device
    """Where the weights are, and samples are drawn."""

    @property
    def network(self) -> nn.Module:
        """The network inside the denoiser."""
        return self.denoiser.network

    @property
    def has_classes(self) -> bool:
        """Whether the network is told of each example's class."""
        return bool(self.denoiser.num_classes)

    def sample(
        self,
        sampler: Sampler | None = None,
        num: int | None = None,
        labels: int | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        condition: Mapping[str, Tensor] | None = None,
        batch_size: int = 256,
        progress: bool = False,
        trajectory: bool | int = False,
    ) -> Tensor:
        """Draw samples with the averaged weights; a ScoreModule's at its trainer's precision, if it has one.

        Args:
            sampler: the model's own if left out. Afterwards its ``nfe`` is that of the last batch.
            num: how many, at least 1; if left out as many as there are labels, or else 64.
            labels: classes ``(num,)``, a tensor or a list; one number for all samples; for a conditional network 0, 1,
                2, … in turn if left out.
            generator: draws the starts and the steps' noise.
            condition: other conditions by name, each with one row for each sample, where the network is.
            batch_size: how many are drawn at once.
            progress: show bars, of the images and of each batch's steps.
            trajectory: return every state instead of the last; a number of at least 2: so many of them, evenly spread,
                the start and the samples among them.

        Returns:
            ``(num, *shape)`` float32 where the network is, about [-1, 1]; with ``trajectory``
            ``(frames, num, *shape)``, the first frame the starts, the last the samples.

        Raises:
            ValueError: if ``num`` is below 1, the shape is not known yet, the sampler does not fit the SDE, or labels
                are not one for each sample, no classes of the network, or given to a network without classes.
        """
        if labels is not None:
            labels = self._checked(labels, num)
        if num is None:
            num = 64 if labels is None else len(labels)
        if num < 1:
            raise ValueError(f"num={num}: at least 1 sample must be asked for")
        if self.shape is None:
            raise ValueError("shape: not known before training; give ScoreModule(shape=(C, H, W)), or (D,) for points")
        sampler = sampler if sampler is not None else self.sampler
        if labels is None:
            labels = self.default_labels(torch.arange(num, device=self.device))
        batches = []
        bar = progress_bar(total=num, desc="images", unit="image", disable=not (progress and num > batch_size))
        with self._drawing(), bar:
            for first in range(0, num, batch_size):
                size = min(batch_size, num - first)
                cond: dict[str, Any] = {} if labels is None else {"labels": labels[first : first + size]}
                cond |= {name: rows[first : first + size] for name, rows in (condition or {}).items()}
                batch = sampler(
                    self.denoiser,
                    (size, *self.shape),
                    generator=generator,
                    progress=progress,
                    trajectory=trajectory,
                    **cond,
                )
                batches.append(batch)
                bar.update(size)
        # a single batch as it is: a copy of a long trajectory may be a gigabyte
        return batches[0] if len(batches) == 1 else torch.cat(batches, dim=1 if trajectory else 0)

    def _drawing(self) -> AbstractContextManager[Any]:
        """The context that samples are drawn in."""
        return nullcontext()

    def condition(self, labels: Tensor) -> dict[str, Any]:
        """What the network is conditioned on: the labels if it has classes, else nothing."""
        return {"labels": labels} if self.has_classes else {}

    def _checked(self, labels: int | Sequence[int] | Tensor, num: int | None) -> Tensor:
        """Labels as int64 ``(num,)``, where the network is."""
        if not self.has_classes:
            raise ValueError(f"labels: {type(self.network).__name__} has no classes: leave them out")
        given = torch.as_tensor(labels, device=self.device)
        if given.ndim == 0:
            given = given.expand(1 if num is None else max(num, 0))
        classes: int = self.network.num_classes  # type: ignore[assignment]
        if given.ndim != 1 or len(given) != (len(given) if num is None else num):
            right = "one for each sample" if num is None else f"{num}, one for each sample, or one number for all"
            raise ValueError(f"labels: of shape {tuple(given.shape)}: must be {right}")
        whole = not (given.is_floating_point() or given.dtype == torch.bool) or len(given) == 0
        if not whole or ((given < 0) | (given >= classes)).any():
            raise ValueError(f"labels={given.unique().tolist()}: must be whole numbers from 0 to {classes - 1}")
        return given.long()

    def default_labels(self, indices: Tensor) -> Tensor | None:
        """The classes that samples of these indices get unless told otherwise: in turn; none without classes."""
        classes = self.denoiser.num_classes
        return indices % classes if classes else None

    @property
    def drawn_classes(self) -> str:
        """How :meth:`labels_in_shares` chooses, in words."""
        if not self.has_classes:
            return "none"
        return "in turn" if self.class_counts is None else "in the training data's shares"

    def labels_in_shares(self, total: int, counts: Sequence[int] | None = None) -> Tensor | None:
        """The classes of ``total`` samples that are to be compared with data; None for a network without classes.

        Each has its share of the data (:func:`~diffusion_lightning.data.shares.in_shares`).

        Args:
            total: how many samples.
            counts: of the data's examples in each class; ``class_counts`` if left out, and in turn without those.

        Returns:
            ``(total,)`` where the network is: sample i has label i, whichever process draws it.
        """
        counts = counts if counts is not None else self.class_counts
        if counts is None or not self.has_classes:
            return self.default_labels(torch.arange(total, device=self.device))
        return in_shares(counts, total).to(self.device)


class TrainedModel(DrawsSamples):
    """What a training leaves: a denoiser with the averaged weights, in evaluation mode, and what is known of its data.

    Args:
        denoiser: its network may be compiled by now.
        sampler: draws wherever no other is named.
        shape: of one example.
        class_names: what each label stands for.
        class_counts: training examples of each label.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        sampler: Sampler,
        shape: Sequence[int] | None,
        class_names: list[str] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.sampler = sampler
        self.shape = tuple(shape) if shape is not None else None
        self.class_names = class_names
        self.class_counts = class_counts

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weights are, and samples are drawn."""
        return self.denoiser.device

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "TrainedModel":
        """The model of a checkpoint, without Lightning.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds code, or is not of a ScoreModule.
        """
        checkpoint = load_checkpoint(path)
        recipe, own = checkpoint["hyper_parameters"], checkpoint[KEY]
        parts = {name: recipe[name] for name in ("network", "sde", "parameterization")}
        denoiser: NetworkDenoiser = build(NetworkDenoiser, parts)
        _load_averages(denoiser, checkpoint)
        sampler: Sampler = build(_Drawing, {"sampler": recipe["sampler"]}).sampler
        return cls(
            denoiser.to(device).eval(), sampler, recipe["shape"], own.get("class_names"), own.get("class_counts")
        )


@dataclass
class _Drawing:
    """A field for :func:`build` to check a sampler's recipe against."""

    sampler: Sampler


def _load_averages(denoiser: NetworkDenoiser, checkpoint: dict[str, Any]) -> None:
    """Give a denoiser the averaged weights of a checkpoint, and what has no average as it was trained."""
    prefix, state = "denoiser.", checkpoint["state_dict"]
    denoiser.load_state_dict({name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)})
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, checkpoint["ema"]["shadow_params"], strict=True):
            parameter.copy_(average)
