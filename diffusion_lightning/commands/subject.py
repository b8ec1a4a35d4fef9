"""What is judged: a model and how its samples are drawn, as options say it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import Namespace
from torch import Tensor

from diffusion_lightning.commands.drawing import Precision, drawing_context
from diffusion_lightning.commands.sweep import Way
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.messages import warn
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.randomness import Stream, derive_seed
from diffusion_lightning.training.bf16 import has_bf16_units
from diffusion_lightning.training.checkpoint_file import load_checkpoint
from diffusion_lightning.training.requested import to_compare
from diffusion_lightning.training.trained import TrainedModel

if TYPE_CHECKING:  # data modules load Lightning
    from diffusion_lightning.data.base import ImageDataModule


@dataclass
class Subject:
    """What is judged: a model, and how its samples are drawn.

    Attributes:
        model: draws the samples.
        origin: what results say of where the model is from, such as its checkpoint and its step.
        num: how many samples, at least 2.
        batch_size: how many are drawn at once.
        seed: decides the samples, and the metrics' subsets.
        labels: the samples' classes ``(num,)``, None for a network without classes.
        classes: how they were chosen, in words.
        asked: gives the conditions of samples by their indices; those labels if left out.
        precision: of the network.
        progress: show bars.
    """

    model: TrainedModel
    origin: dict[str, Any]
    num: int
    batch_size: int
    seed: int
    labels: Tensor | None
    classes: str
    precision: Precision = "auto"
    progress: bool = False
    asked: Callable[[Tensor], dict[str, Tensor]] | None = None
    _has_told_precision: bool = field(default=False, init=False)

    @property
    def format(self) -> Literal["bf16-mixed", "32-true"]:
        """Of the network's numbers, as Lightning calls it."""
        return "bf16-mixed" if self.precision == "auto" and has_bf16_units(self.model.device.type) else "32-true"

    def samples(self, way: Way) -> Iterator[Tensor]:
        """Batches of samples in [-1, 1]; every way has the same starts and classes."""
        generator = torch.Generator(self.model.device)
        bar = progress_bar(total=self.num, desc=way.name, unit="image", disable=not self.progress)
        with bar:
            for index, first in enumerate(range(0, self.num, self.batch_size)):
                size = min(self.batch_size, self.num - first)
                condition = self._conditions(torch.arange(first, first + size))
                # anew for each batch, whose start is the first draw: what a sampler draws later moves no other start
                generator.manual_seed(derive_seed(self.seed, index, Stream.EVALUATION))
                with drawing_context(self.precision, self.model.device, tell=not self._has_told_precision):
                    self._has_told_precision = True
                    samples = self.model.sample(
                        way.sampler,
                        size,
                        generator=generator,
                        condition=condition,
                        guidance=way.guidance,
                        batch_size=size,
                        progress=self.progress,
                    )
                yield samples  # outside of the context: what is done with them is done in float32
                bar.update(size)

    def _conditions(self, indices: Tensor) -> dict[str, Tensor]:
        if self.asked is not None:
            return self.asked(indices)
        return {} if self.labels is None else {"labels": self.labels[indices.to(self.labels.device)]}


def subjects_of(options: Namespace, model: TrainedModel, data: "ImageDataModule | None") -> list[Subject]:
    """What the options of ``lightning evaluate`` say of it, once for each seed.

    Raises:
        UsageError: if the model's samples need conditions, and there are no data that have them.
    """
    # its tensors are in the model already
    checkpoint = load_checkpoint(options.ckpt_path, map_location="meta")
    origin = {"checkpoint": options.ckpt_path, "step": checkpoint["global_step"], "epoch": checkpoint["epoch"]}
    seeds = range(options.seed, options.seed + options.seeds)
    told: list[tuple[Tensor | None, str, Callable[[Tensor], dict[str, Tensor]] | None]]
    if set(taken_by(model.network)) - {"labels"}:
        told = [_conditions(options, model, data, seed) for seed in seeds]
    else:
        told = [(*_labels(options, model, data), None)] * len(seeds)
    subjects = [
        Subject(
            model,
            origin,
            options.num,
            options.batch_size,
            seed,
            labels,
            classes,
            options.precision,
            progress=not options.quiet,
            asked=asked,
        )
        for seed, (labels, classes, asked) in zip(seeds, told, strict=True)
    ]
    for subject in subjects[1:]:
        subject._has_told_precision = True
    return subjects


def _conditions(
    options: Namespace, model: TrainedModel, data: "ImageDataModule | None", seed: int
) -> tuple[Tensor | None, str, Callable[[Tensor], dict[str, Tensor]]]:
    """Those of training examples, for a model that is told more than classes; none without data, if it can do so.

    Returns:
        The classes among them, what they are in words, and all of them.
    """
    if data is not None:
        data.prepare_data()
        data.setup("test")
    elif model.condition_dropout == 0:
        told = ", ".join(taken_by(model.network))
        raise UsageError(
            f"data: the model is told {told}, and was never without: give --data, whose examples have such"
        )
    asked = to_compare(model, options.num, data, seed)
    of_samples = torch.arange(options.num).split(options.batch_size)
    is_told = data is not None and model.has_classes
    labels = torch.cat([asked(indices)["labels"] for indices in of_samples]) if is_told else None
    classes = "none given" if data is None else f"with the conditions of examples of {type(data).__name__}"
    return labels, classes, asked


def _labels(options: Namespace, model: TrainedModel, data: "ImageDataModule | None") -> tuple[Tensor | None, str]:
    """The samples' classes, in the shares of the data that are given or that were trained on; and how, in words."""
    if not model.has_classes:
        return None, "none"
    fits = data is not None and model.groups is None and data.num_classes == model.network.num_classes
    if fits and (options.data is not None or model.class_counts is None):
        assert data is not None
        data.prepare_data()
        return model.labels_in_shares(options.num, data.class_counts()), f"in the shares of {type(data).__name__}"
    if model.class_counts is None:
        warn(
            f"{options.ckpt_path} does not say how often its training data have each class: the samples' classes come "
            "in turn; give --data to draw them in the shares of that data"
        )
    return model.labels_in_shares(options.num), model.drawn_classes
