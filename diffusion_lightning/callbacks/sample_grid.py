"""A grid of samples after an epoch, from the same noise every time: the pictures improve, the digits stay."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer

from diffusion_lightning.callbacks.pictures import (
    check_at_least_one,
    ends_here,
    epoch_path,
    example_shape,
    is_due,
    leave_animation,
    leave_picture,
    share,
)
from diffusion_lightning.callbacks.sampling import PictureCallback
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.images import image_grid, visible
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.guided import GuidanceChoice, with_weight
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.requested import to_look_at

Animate = Literal["never", "last", "always"]

NAMED = 20
"""Of many classes, how many a caption names."""

FRAMES = 40
"""Pictures of an animation at most: with a sampler of 1,000 steps every 26th state."""


class SampleGrid(PictureCallback):
    """Draws samples with the EMA weights and leaves the grid as ``<name>/epoch=….png`` and with the loggers.

    The classes of a conditional network come in turn. The work is split over the processes. The generator is the
    callback's own and starts anew each time.

    With ``animate`` the grid's way out of the noise is left beside it, as ``<name>/epoch=….gif``, and with the loggers
    as ``<name>_animation``. Its 40 frames, fewer if the sampler has fewer states, are evenly spread over the sampler's
    steps, from the start at T to the grid itself, which is held for two seconds. Frames before the last are scaled as
    :func:`~diffusion_lightning.images.visible` says, or noise would be black and white. Of all pictures of the grid
    only the frames are held, whatever the number of steps: 31 MB for 64 of 3×32×32.

    With ``guidance_weights`` the same noise and the same classes are drawn once for each weight, and the grid has a row
    for each, in their order.

    Args:
        sampler: the module's own if left out.
        num_samples: pictures in the grid; with ``guidance_weights`` in each of its rows, for which 8 or 10 are enough.
        every_n_epochs: how often; the end of training always counts.
        batch_size: how many are drawn at once in each process.
        name: of the folder and of the picture with the loggers; give one to each of several grids.
        animate: ``"last"`` animates the grid that training ends with, ``"always"`` every one.
        guidance: steers the samples: the module's own, null for none, or a class and its arguments.
        guidance_weights: a row for each, such as [0, 1, 2, 4], of that guidance; where there is none, of
            classifier-free guidance.

    Raises:
        ValueError: if a number is below 1 or ``animate`` another word, or at the start of training if the sampler does
            not fit the SDE or the data are not images of 1 or 3 channels.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_samples: int = 64,
        every_n_epochs: int = 1,
        batch_size: int = 256,
        name: str = "samples",
        animate: Animate = "never",
        guidance: GuidanceChoice = "own",
        guidance_weights: Sequence[float] | None = None,
    ) -> None:
        check_at_least_one(num_samples=num_samples, every_n_epochs=every_n_epochs, batch_size=batch_size)
        if animate not in get_args(Animate):
            raise ValueError(f"animate={animate!r}: must be one of {', '.join(get_args(Animate))}")
        self.sampler = sampler
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.name = name
        if guidance_weights is not None and len(guidance_weights) == 0:
            raise ValueError("guidance_weights=[]: give at least one, such as [0, 1, 2, 4], or leave them out")
        self.animate = animate
        self.guidance = guidance
        self.guidance_weights = guidance_weights

    @property
    def num_drawn(self) -> int:
        """All rows of them."""
        return self.num_samples * (1 if self.guidance_weights is None else len(self.guidance_weights))

    def check(self, module: ScoreModule, data: Any) -> None:
        """As its parent's, with each of the weights."""
        super().check(module, data)
        for guidance in self._rows(module):
            module.guided(guidance, example_shape(module, data))

    def _rows(self, module: ScoreModule) -> list[GuidanceChoice]:
        """What steers each row of the grid, which without weights has but one part."""
        if self.guidance_weights is None:
            return [self.guidance]
        return [with_weight(module.own_or(self.guidance), weight) for weight in self.guidance_weights]

    def _caption(self, module: ScoreModule) -> str:
        """What was asked for: the classes by their names, and the weights."""
        told = []
        if taken_by(module.network) == ("labels",) and module.num_classes is not None:
            names = module.class_names or list(map(str, range(module.num_classes)))
            told.append(f"classes in turn: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}")
        if self.guidance_weights is not None:
            told.append(f"rows of weight {', '.join(f'{weight:g}' for weight in self.guidance_weights)}")
        return "; ".join(told)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        is_animated = self.animate == "always" or (self.animate == "last" and ends_here(trainer))
        # every process draws the largest share, for only equal shares can be gathered; what is too much is cut off
        count = share(self.num_samples, trainer.world_size, 0)
        seed = derive_seed(global_seed(), trainer.global_rank, Stream.GRID)
        first = trainer.global_rank * count  # sample i of the grid is the i-th of what is gathered
        places = torch.arange(first, first + count, device=pl_module.device)
        asked = to_look_at(pl_module, places, trainer.datamodule)  # type: ignore[attr-defined]
        rows = []
        for guidance in self._rows(pl_module):
            drawn = pl_module.sample(
                self.sampler,
                count,
                generator=torch.Generator(pl_module.device).manual_seed(seed),
                condition=asked,
                guidance=guidance,
                batch_size=self.batch_size,
                progress=trainer.is_global_zero,
                trajectory=FRAMES if is_animated else False,
            )
            rows.append(self._of_all(pl_module, drawn if is_animated else drawn[None], self.num_samples))
        states = torch.cat(rows, dim=1)
        across = self.num_samples if self.guidance_weights is not None else None
        path = epoch_path(trainer, self.name)
        warn_of_broken(count_broken(states[-1]), states.shape[1])
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, image_grid(states[-1], across), path, self._caption(pl_module))
            if is_animated:
                shown = [*(visible(state) for state in states[:-1]), states[-1]]
                frames = [image_grid(state, across) for state in shown]
                leave_animation(trainer, self.name, frames, path.with_suffix(".gif"))
