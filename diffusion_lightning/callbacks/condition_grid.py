"""What a model makes of pictures that it is told, after an epoch: the condition, samples under it, and the truth."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from diffusion_lightning.callbacks.pictures import check_at_least_one, epoch_path, is_due, leave_picture, share
from diffusion_lightning.callbacks.sampling import PictureCallback
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.images import image_grid
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.module import ScoreModule


class ConditionGrid(PictureCallback):
    """Draws samples under the conditions of held-out examples, as ``<name>/epoch=….png`` and with the loggers.

    One row per example: the picture that is its condition, each pixel enlarged to a square; samples with the EMA
    weights, drawn under all of its conditions that the network takes; and the example itself. The examples are the
    first that validation reads, the same in every epoch. The work is split over the processes. The generator is the
    callback's own and starts anew each time.

    Args:
        sampler: the module's own if left out.
        num_examples: rows; fewer if not so many are held out.
        draws: samples of each row, which differ in their noise alone: several show what the condition leaves open.
        every_n_epochs: how often; the end of training always counts.
        batch_size: how many are drawn at once in each process.
        name: of the folder and of the picture with the loggers; give one to each of several grids.
        guidance: steers the samples: the module's own, null for none, or a class and its arguments.

    Raises:
        ValueError: if a number is below 1, or at the start of training if the sampler does not fit the SDE, the data
            are not images of 1 or 3 channels, their condition holds no such picture, or the network takes none.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_examples: int = 8,
        draws: int = 1,
        every_n_epochs: int = 1,
        batch_size: int = 256,
        name: str = "conditions",
        guidance: GuidanceChoice = "own",
    ) -> None:
        check_at_least_one(num_examples=num_examples, draws=draws, every_n_epochs=every_n_epochs, batch_size=batch_size)
        self.sampler = sampler
        self.num_examples = num_examples
        self.draws = draws
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.name = name
        self.guidance = guidance

    @property
    def num_drawn(self) -> int:
        """At most, if as many examples are held out."""
        return self.num_examples * self.draws

    def check(self, module: ScoreModule, data: Any) -> None:
        """As its parent's; a ValueError also where no picture is the condition of data or network."""
        super().check(module, data)
        channels = data.condition_channels if isinstance(data, BatchDataModule) else None
        if channels is None:
            raise ValueError(
                f"ConditionGrid needs data whose condition is a picture, {type(data).__name__} gives none: give "
                "--data.condition.downsample 4, or leave ConditionGrid out"
            )
        if channels not in (1, 3):
            raise ValueError(
                f"ConditionGrid shows pictures of 1 or 3 channels, those of {type(data).__name__}'s condition have "
                f"{channels}: leave ConditionGrid out"
            )
        if "picture" not in taken_by(module.network):
            raise ValueError(
                f"ConditionGrid needs a network that is told a picture, {type(module.network).__name__} is not: give "
                f"--model.network.condition_channels {channels}, or leave ConditionGrid out"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        data: BatchDataModule = trainer.datamodule  # type: ignore[attr-defined]
        x, conditions = data.examples(data.first_held_out(self.num_examples).tolist())
        total = len(x) * self.draws
        count = share(total, trainer.world_size, 0)
        # what is drawn beyond the last of all is cut off again
        own = torch.arange(trainer.global_rank * count, (trainer.global_rank + 1) * count).clamp(max=total - 1)
        told = {name: conditions[name][own // self.draws] for name in taken_by(pl_module.network) if name in conditions}
        seed = derive_seed(global_seed(), trainer.global_rank, Stream.CONDITION_GRID)
        drawn = pl_module.sample(
            self.sampler,
            count,
            generator=torch.Generator(pl_module.device).manual_seed(seed),
            condition={name: value.to(pl_module.device) for name, value in told.items()},
            guidance=self.guidance,
            batch_size=self.batch_size,
            progress=trainer.is_global_zero,
        )
        samples = self._of_all(pl_module, drawn[None], total)[0].cpu()
        path = epoch_path(trainer, self.name)
        warn_of_broken(count_broken(samples), total)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, rows_of(conditions["picture"], samples, x), path)


def rows_of(pictures: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """One picture, uint8 ``(3, H', W')``, with a row for each of N examples: its condition, its samples, itself.

    Args:
        pictures: ``(N, C, h, w)`` in [-1, 1], enlarged to the size of x by nearest neighbours.
        samples: ``(N · draws, C, H, W)``, those of one example after another.
        x: ``(N, C, H, W)``.
    """
    enlarged = F.interpolate(pictures, x.shape[2:], mode="nearest")
    columns = enlarged[:, None], samples.unflatten(0, (len(x), -1)), x[:, None]
    rows = torch.cat([column.expand(-1, -1, 3, -1, -1) for column in columns], dim=1)
    return image_grid(rows.flatten(0, 1), rows.shape[1])
