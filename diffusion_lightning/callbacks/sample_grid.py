"""A grid of samples after an epoch, from the same noise every time: the pictures improve, the digits stay."""

import torch
from lightning.pytorch import LightningModule, Trainer

from diffusion_lightning.callbacks.pictures import (
    check_at_least_one,
    check_images,
    epoch_path,
    is_due,
    leave_picture,
    share,
)
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.images import image_grid
from diffusion_lightning.module import ScoreModule
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Sampler


class SampleGrid(SamplingCallback):
    """Draws samples with the EMA weights and leaves the grid as ``<name>/epoch=….png`` and with the loggers.

    The work is split over the processes. The generator is the callback's own and starts anew each time.

    Args:
        sampler: the module's own if left out.
        num_samples: pictures in the grid.
        every_n_epochs: how often; the end of training always counts.
        batch_size: how many are drawn at once in each process.
        name: of the folder and of the picture with the loggers; give one to each of several grids.

    Raises:
        ValueError: if a number is below 1, or at the start of training if the sampler does not fit the SDE or the data
            is not images.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_samples: int = 64,
        every_n_epochs: int = 1,
        batch_size: int = 256,
        name: str = "samples",
    ) -> None:
        check_at_least_one(num_samples=num_samples, every_n_epochs=every_n_epochs, batch_size=batch_size)
        self.sampler = sampler
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.name = name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ScoreModule)
        check_images(self, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        # every process draws the largest share, for only equal shares can be gathered; what is too much is cut off
        count = share(self.num_samples, trainer.world_size, 0)
        seed = derive_seed(global_seed(), trainer.global_rank, Stream.GRID)
        generator = torch.Generator(pl_module.device).manual_seed(seed)
        samples = pl_module.sample(
            self.sampler, count, generator=generator, batch_size=self.batch_size, progress=trainer.is_global_zero
        )
        gathered = pl_module.all_gather(samples)
        assert isinstance(gathered, torch.Tensor)
        samples = gathered.reshape(-1, *samples.shape[1:])[: self.num_samples]
        path = epoch_path(trainer, self.name)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, image_grid(samples), path)
