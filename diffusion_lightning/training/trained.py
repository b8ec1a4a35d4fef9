"""A trained model as it draws samples: with Lightning around it or without."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.conditions import Condition, by_name, taken_by
from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.data.shares import in_shares
from diffusion_lightning.denoiser import Denoiser, NetworkDenoiser
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.averaged import load_averaged
from diffusion_lightning.training.checkpoint_file import KEY
from diffusion_lightning.training.guided import GuidanceChoice, Steering
from diffusion_lightning.training.recipe import build


class DrawsSamples:
    """Whatever draws samples: by which denoiser and sampler, of which shape, and of which classes."""

    denoiser: NetworkDenoiser
    sampler: Sampler
    """Draws wherever no other is named."""
    guidance: GuidanceCallable | None
    """Steers what is drawn wherever no other is named; None: nothing does."""
    shape: tuple[int, ...] | None
    """Of one example; None if it is not known yet."""
    class_names: list[str] | None
    """What each label stands for, as the training data say; None where they have no names."""
    class_counts: list[int] | None
    """How many training examples have each label; None if the network has no classes, or it is not known."""
    groups: Groups | None
    """What the network's labels are, if not classes but groups found in the training data."""
    vector_names: list[str] | None
    """What the numbers of a vector are, as the training data say; None where they have no names."""
    condition_dropout: float
    """The probability with which examples in training had none of their conditions."""

    device: torch.device
    """Where the weights are, and samples are drawn."""

    _steering: Steering

    @property
    def network(self) -> nn.Module:
        """The network inside the denoiser."""
        return self.denoiser.network

    @property
    def has_classes(self) -> bool:
        """Whether samples can be asked for by classes."""
        return self.num_classes is not None

    @property
    def num_classes(self) -> int | None:
        """How many classes samples can be asked for by; None for none.

        They are those that the network is told, unless it is told groups, of which each sample's is drawn.
        """
        told = self.denoiser.num_classes if self.groups is None else self.groups.classes
        return told if told and (self.groups is None or told > 1) else None

    def guided(self, guidance: GuidanceChoice = "own", shape: Sequence[int] | None = None) -> Denoiser:
        """The denoiser that samples are drawn from: the model's own, or one that steers it.

        Args:
            guidance: ``"own"``, the model's; None for none; or what makes it of the denoiser, such as
                ``functools.partial(ClassifierFreeGuidance, weight=2)``; a worse model may be its checkpoint's path.
            shape: of one example, where the model does not know it yet.

        Raises:
            ValueError: naming the argument, for guidance that cannot be, or would change nothing.
            FileNotFoundError: if there is no checkpoint at that path.
        """
        maker = self.own_or(guidance)
        return self._steering(self.denoiser, maker, self.shape or shape, self.condition_dropout)

    def own_or(self, guidance: GuidanceChoice) -> GuidanceCallable | None:
        """What makes the guidance that is chosen."""
        return self.guidance if isinstance(guidance, str) else guidance

    def sample(
        self,
        sampler: Sampler | None = None,
        num: int | None = None,
        labels: int | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        condition: Condition | None = None,
        guidance: GuidanceChoice = "own",
        batch_size: int = 256,
        progress: bool = False,
        trajectory: bool | int = False,
    ) -> Tensor:
        """Draw samples with the averaged weights; a ScoreModule's at its trainer's precision, if it has one.

        Args:
            sampler: the model's own if left out. Afterwards its ``nfe`` is that of the last batch.
            num: how many, at least 1; if left out one for each label or other condition, or else 64.
            labels: classes ``(num,)``, a tensor or a list; one number for all samples; for a network that is told
                nothing but classes 0, 1, 2, … in turn if left out.
            generator: draws the starts and the steps' noise.
            condition: what else the network is told, or the labels: a tensor or tensors by name, with one entry for
                each sample (:mod:`diffusion_lightning.conditions`). What is left out is not given.
            guidance: what steers the samples: the model's own, ``None`` for none, or as :meth:`guided` has it.
            batch_size: how many are drawn at once.
            progress: show bars, of the images and of each batch's steps.
            trajectory: return every state instead of the last; a number of at least 2: so many of them, evenly spread,
                the start and the samples among them.

        Returns:
            ``(num, *shape)`` float32 where the network is, about [-1, 1]; with ``trajectory``
            ``(frames, num, *shape)``, the first frame the starts, the last the samples.

        Raises:
            ValueError: if ``num`` is below 1, the shape is not known yet, the sampler does not fit the SDE, labels are
                not one for each sample, no classes of the network, or given to a network without classes, or a
                condition is not one for each sample, or one that the network is not told, or has never done without;
                for guidance as :meth:`guided` does.
        """
        asked = by_name(condition) if condition is not None else {}
        if (classes := labels if labels is not None else asked.get("labels")) is not None:
            asked["labels"] = self._checked(classes, num)
        self._check_asked(asked, num)
        if num is None:
            num = len(next(iter(asked.values()))) if asked else 64
        if num < 1:
            raise ValueError(f"num={num}: at least 1 sample must be asked for")
        if self.shape is None:
            raise ValueError("shape: not known before training; give ScoreModule(shape=(C, H, W)), or (D,) for points")
        sampler = sampler if sampler is not None else self.sampler
        denoiser = self.guided(guidance)
        if not asked:
            asked = self.default_conditions(torch.arange(num, device=self.device))
        if self.groups is not None:
            classes = asked.get("labels", torch.zeros(num, dtype=torch.int64, device=self.device))
            asked["labels"] = self.groups.draw(classes, generator)
        self._check_left_out(asked)
        batches = []
        bar = progress_bar(total=num, desc="images", unit="image", disable=not (progress and num > batch_size))
        with self._drawing(), bar:
            for first in range(0, num, batch_size):
                size = min(batch_size, num - first)
                cond = {name: rows[first : first + size].to(self.device) for name, rows in asked.items()}
                batch = sampler(
                    denoiser,
                    (size, *self.shape),
                    generator=generator,
                    progress=progress,
                    trajectory=trajectory,
                    **cond,
                )
                batches.append(batch)
                bar.update(size)
        if asked:
            self._steering.tell_if_idle(denoiser, sampler)
        # a single batch as it is: a copy of a long trajectory may be a gigabyte
        return batches[0] if len(batches) == 1 else torch.cat(batches, dim=1 if trajectory else 0)

    def _drawing(self) -> AbstractContextManager[Any]:
        """The context that samples are drawn in."""
        return nullcontext()

    def condition(self, given: Condition) -> dict[str, Any]:
        """Of the conditions of a batch those that the network is told, by name and where it is."""
        told = taken_by(self.network)
        return {name: rows.to(self.device) for name, rows in by_name(given).items() if name in told} if told else {}

    def asked_like(self, given: Condition) -> dict[str, Any]:
        """What to ask samples for that are to be like a batch's examples: of groups, the classes that they are of."""
        asked = self.condition(given)
        if self.groups is not None and (groups := asked.pop("labels", None)) is not None and self.has_classes:
            asked["labels"] = self.groups.class_of(groups)
        return asked

    def default_conditions(self, indices: Tensor) -> dict[str, Tensor]:
        """What samples of these indices are asked for unless told otherwise: the classes in turn.

        Nothing of a network without classes, or of one that is told more than classes, for those go together.
        """
        labels = self.default_labels(indices) if taken_by(self.network) == ("labels",) else None
        return {"labels": labels} if labels is not None else {}

    def _check_asked(self, asked: dict[str, Tensor], num: int | None) -> None:
        told = taken_by(self.network)
        lengths = {name: len(rows) for name, rows in asked.items()}
        for name, length in lengths.items():
            if name not in told:
                takes = f"it takes {', '.join(told)}" if told else "it takes none"
                raise ValueError(f"condition: {type(self.network).__name__} is told no {name}: {takes}")
            if length != (needed := next(iter(lengths.values())) if num is None else num):
                raise ValueError(f"condition: {name} has {length} rows: must be {needed}, one for each sample")

    def _check_left_out(self, asked: dict[str, Tensor]) -> None:
        left_out = [name for name in taken_by(self.network) if name not in asked]
        if left_out and not self.condition_dropout and set(taken_by(self.network)) != {"labels"}:
            raise ValueError(
                f"condition: {' and '.join(left_out)} must be given: the model was trained with condition_dropout=0, "
                "and has never done without"
            )

    def _checked(self, labels: int | Sequence[int] | Tensor, num: int | None) -> Tensor:
        """Labels as int64 ``(num,)``, where the network is."""
        if not self.has_classes:
            raise ValueError(f"labels: {type(self.network).__name__} has no classes: leave them out")
        given = torch.as_tensor(labels, device=self.device)
        if given.ndim == 0:
            given = given.expand(1 if num is None else max(num, 0))
        classes: int = self.num_classes  # type: ignore[assignment]
        if given.ndim != 1 or len(given) != (len(given) if num is None else num):
            right = "one for each sample" if num is None else f"{num}, one for each sample, or one number for all"
            raise ValueError(f"labels: of shape {tuple(given.shape)}: must be {right}")
        whole = not (given.is_floating_point() or given.dtype == torch.bool) or len(given) == 0
        if not whole or ((given < 0) | (given >= classes)).any():
            raise ValueError(f"labels={given.unique().tolist()}: must be whole numbers from 0 to {classes - 1}")
        return given.long()

    def default_labels(self, indices: Tensor) -> Tensor | None:
        """The classes that samples of these indices get unless told otherwise: in turn; none without classes."""
        return indices % self.num_classes if self.num_classes is not None else None

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
        guidance: steers what is drawn wherever no other is named.
        condition_dropout: the probability with which examples in training had none of their conditions.
        vector_names: what the numbers of a vector are.
        groups: what the network's labels are, if not classes but groups found in the data.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        sampler: Sampler,
        shape: Sequence[int] | None,
        class_names: list[str] | None = None,
        class_counts: list[int] | None = None,
        guidance: GuidanceCallable | None = None,
        condition_dropout: float = 0.0,
        vector_names: list[str] | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.sampler = sampler
        self.shape = tuple(shape) if shape is not None else None
        self.class_names = class_names
        self.class_counts = class_counts
        self.guidance = guidance
        self.condition_dropout = condition_dropout
        self._steering = Steering()
        self.vector_names = vector_names
        self.groups = groups

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
        denoiser, checkpoint = load_averaged(path)
        recipe, own = checkpoint["hyper_parameters"], checkpoint[KEY]
        drawing: _Drawing = build(_Drawing, {name: recipe.get(name) for name in ("sampler", "guidance")})
        return cls(
            denoiser.to(device),
            drawing.sampler,
            recipe["shape"],
            own.get("class_names"),
            own.get("class_counts"),
            drawing.guidance,
            recipe.get("condition_dropout", 0.0),
            own.get("vector_names"),
            groups_in(own),
        )


def groups_in(saved: Mapping[str, Any]) -> Groups | None:
    """The groups that a checkpoint's own entry holds, None for a network that is told none."""
    held = saved.get("groups")
    return Groups(**held) if held is not None else None


@dataclass
class _Drawing:
    """Fields for :func:`build` to check the recipes of what draws against."""

    sampler: Sampler
    guidance: GuidanceCallable | None = None
