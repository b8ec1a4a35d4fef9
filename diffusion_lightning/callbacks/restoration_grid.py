"""How well a model in training fills in pictures: held-out ones, after an epoch."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from diffusion_lightning.callbacks.pictures import check_at_least_one, epoch_path, is_due, leave_picture, share
from diffusion_lightning.callbacks.sampling import PictureCallback
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.images import image_grid
from diffusion_lightning.inverse import METHODS, Inpainting, restore
from diffusion_lightning.inverse.masks import missing_pixels
from diffusion_lightning.inverse.restore import STEPS, is_sampler
from diffusion_lightning.inverse.strips import tiles
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import DPMSolverPlusPlus, Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.module import ScoreModule

COST = {"MMPS": 5, "PGDM": 2, "DPS": 2, "Replacement": 1, "RePaint": 5, "TwistedSMC": 16}
"""Evaluations of each method as it is by default, for one of a sampler of as many steps; about, where it varies."""


class RestorationGrid(PictureCallback):
    """Fills in a part of held-out pictures, as ``<name>/epoch=….png`` and with the loggers.

    One row per picture: what is known of it, the answers, their mean and standard deviation, and the picture itself.
    They are the first that validation reads, the same in every epoch; the EMA weights are asked, without classes or
    guidance. The work is split over the processes. The generator is the callback's own and starts anew each time.

    Args:
        mask: what is filled in: left, right, top, bottom, center or random:0.5
            (:mod:`~diffusion_lightning.inverse.masks`).
        method: of :func:`~diffusion_lightning.inverse.restore`, by name.
        sampler: draws, where the method does not by itself; DPM-Solver++ of 20 steps if left out.
        num_examples: rows; fewer if not so many are held out.
        draws: answers of each row.
        noise_std: of the known pixels.
        every_n_epochs: how often; the end of training always counts.
        batch_size: how many are drawn at once in each process.
        name: of the folder and of the picture with the loggers.

    Raises:
        ValueError: for a number out of its range, a mask or a method that there is none of, or at the start of training
            if the data are not images of 1 or 3 channels, or the model was never without its conditions.
    """

    guidance = None

    def __init__(
        self,
        mask: str = "bottom",
        method: str = "MMPS",
        sampler: Sampler | None = None,
        num_examples: int = 8,
        draws: int = 4,
        noise_std: float = 0.0,
        every_n_epochs: int = 1,
        batch_size: int = 64,
        name: str = "restorations",
    ) -> None:
        check_at_least_one(num_examples=num_examples, draws=draws, every_n_epochs=every_n_epochs, batch_size=batch_size)
        missing_pixels(mask, (8, 8))  # a word that is none is told at once
        if method not in METHODS:
            raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}")
        if sampler is not None and is_sampler(method):
            raise ValueError(f"sampler: {method} draws by itself: leave it out")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std={noise_std}: must be zero (no noise) or above")
        self.mask, self.method, self.noise_std = mask, method, noise_std
        self.sampler = sampler if sampler is not None else DPMSolverPlusPlus(STEPS)
        self.num_examples, self.draws = num_examples, draws
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.name = name
        self.per_evaluation = COST[method]

    def check(self, module: ScoreModule, data: Any) -> None:
        super().check(module, data)
        if (told := taken_by(module.network)) and module.condition_dropout == 0:
            raise ValueError(
                f"RestorationGrid asks without {', '.join(told)}, and the network is never without: give "
                "--model.condition_dropout 0.1, or leave RestorationGrid out"
            )

    @property
    def num_drawn(self) -> int:
        """At most, if as many examples are held out."""
        return self.num_examples * self.draws

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        data: BatchDataModule = trainer.datamodule  # type: ignore[attr-defined]
        x, _ = data.examples(data.first_held_out(self.num_examples).tolist())
        operator = Inpainting(~missing_pixels(self.mask, (x.shape[2], x.shape[3]))).to(pl_module.device)
        generator = torch.Generator().manual_seed(derive_seed(global_seed(), 0, Stream.RESTORATION_GRID))
        y = operator.measure(x.to(pl_module.device), self.noise_std, generator)
        total = len(x) * self.draws
        count = share(total, trainer.world_size, 0)
        # what is drawn beyond the last of all is cut off again
        own = torch.arange(trainer.global_rank * count, (trainer.global_rank + 1) * count).clamp(max=total - 1)
        seed = derive_seed(global_seed(), 1 + trainer.global_rank, Stream.RESTORATION_GRID)
        with pl_module._drawing():
            drawn = restore(
                pl_module.denoiser,
                y[own // self.draws],
                operator,
                self.method,
                1,
                None if is_sampler(self.method) else self.sampler,
                self.noise_std,
                torch.Generator(pl_module.device).manual_seed(seed),
                batch_size=self.batch_size,
                progress=trainer.is_global_zero,
            )
        answers = self._of_all(pl_module, drawn.reshape(1, count, *x.shape[1:]), total)[0].cpu()
        path = epoch_path(trainer, self.name)
        warn_of_broken(count_broken(answers), total)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, rows_of(y.cpu(), answers, x), path)


def rows_of(known: Tensor, answers: Tensor, x: Tensor) -> Tensor:
    """One picture, uint8 ``(3, H', W')``: of each of N examples what is known, the answers, mean, deviation, itself.

    Args:
        known: ``(N, C, H, W)`` in [-1, 1].
        answers: ``(N · draws, C, H, W)``, those of one example after another.
        x: ``(N, C, H, W)``.
    """
    rows = [tiles(*each) for each in zip(known, answers.unflatten(0, (len(x), -1)), x, strict=True)]
    return image_grid(torch.cat(rows), len(rows[0]))
