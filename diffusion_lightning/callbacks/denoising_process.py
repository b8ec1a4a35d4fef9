"""How samples come out of the noise: a strip of states for each, after an epoch."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchvision.utils import make_grid

from diffusion_lightning.callbacks.pictures import (
    check_at_least_one,
    epoch_path,
    is_due,
    leave_picture,
)
from diffusion_lightning.callbacks.sampling import PictureCallback
from diffusion_lightning.images import to_uint8, visible
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.requested import to_look_at


class DenoisingProcess(PictureCallback):
    """Draws samples with the EMA weights and leaves their denoising as ``<name>/epoch=….png`` and with the loggers.

    One row per sample, time running left to right from the start at T to the sample, with equally many of the sampler's
    steps from frame to frame. For at T some processes have a standard deviation of 80, each frame is divided by
    max(1, q/1.5), where 99 % of its values lie in [-q, q]; images are left as they are. The generator is the callback's
    own and starts anew each time. One process draws.

    Args:
        sampler: the module's own if left out.
        num_samples: rows.
        num_frames: columns, at least 2; fewer are shown where the sampler has fewer states.
        every_n_epochs: how often; the end of training always counts.
        name: of the folder and of the picture with the loggers; give one to each of several pictures.
        guidance: steers the samples: the module's own, null for none, or a class and its arguments.

    Raises:
        ValueError: if a number is too small, or at the start of training if the sampler does not fit the SDE or the
            data are not images of 1 or 3 channels.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_samples: int = 6,
        num_frames: int = 10,
        every_n_epochs: int = 1,
        name: str = "denoising",
        guidance: GuidanceChoice = "own",
    ) -> None:
        check_at_least_one(num_samples=num_samples, every_n_epochs=every_n_epochs)
        if not (num_frames >= 2 and num_frames % 1 == 0):
            raise ValueError(f"num_frames={num_frames}: must be at least 2, the start and the sample")
        self.sampler = sampler
        self.num_samples = num_samples
        self.num_frames = num_frames
        self.every_n_epochs = every_n_epochs
        self.name = name
        self.guidance = guidance

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        path = epoch_path(trainer, self.name)
        with pl_module.ema_weights():  # every process enters, one draws
            if trainer.is_global_zero:
                self._draw(trainer, pl_module, path)

    def _draw(self, trainer: Trainer, pl_module: ScoreModule, path: Path) -> None:
        generator = torch.Generator(pl_module.device).manual_seed(derive_seed(global_seed(), Stream.DENOISING))
        states = pl_module.sample(
            self.sampler,
            self.num_samples,
            generator=generator,
            condition=to_look_at(pl_module, torch.arange(self.num_samples), trainer.datamodule),  # type: ignore[attr-defined]
            guidance=self.guidance,
            batch_size=self.num_samples,
            trajectory=self.num_frames,
        )
        warn_of_broken(count_broken(states[-1]), self.num_samples)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, strips(states), path)


def strips(frames: Tensor) -> Tensor:
    """Frames ``(F, B, C, H, W)`` as one picture of B rows and F columns; uint8 ``(3, H', W')``."""
    return make_grid(to_uint8(visible(frames)).transpose(0, 1).flatten(0, 1), nrow=len(frames), padding=2)
