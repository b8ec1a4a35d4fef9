"""The sliced Wasserstein distance after an epoch: for points what FID is for images, without a network's features."""

import math

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from diffusion_lightning.callbacks.held_out import held_out_points
from diffusion_lightning.callbacks.pictures import check_at_least_one
from diffusion_lightning.callbacks.sampling import Measurement
from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein
from diffusion_lightning.randomness import Stream, derive_seed, draw_some, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.requested import to_compare


class SlicedWasserstein(Measurement):
    """Logs how far samples, drawn with the EMA weights, are from as many held-out points of the data.

    Logged as ``sliced_wasserstein@<num_samples>``, in units of the points (:func:`sliced_wasserstein`). Even two sets
    of real points are about 2·σ_data/√num_samples apart, so different numbers do not compare. NaN if a sample is not
    finite. Classes are drawn in the training data's shares. The noise and the directions are the same each time. It
    also runs after ``lightning validate`` and ``lightning test``. Every process computes the same value.

    Args:
        sampler: the module's own if left out.
        num_samples: generated points, and held-out points that they are compared with, drawn by the run's seed.
        every_n_epochs: how often; the end of training always counts.

    Raises:
        ValueError: if a number is below 1, or at the start if the sampler does not fit the SDE or the data holds out
            fewer points ``(N, 2)`` than ``num_samples``.
    """

    def __init__(self, sampler: Sampler | None = None, num_samples: int = 2000, every_n_epochs: int = 1) -> None:
        check_at_least_one(num_samples=num_samples, every_n_epochs=every_n_epochs)
        self.sampler = sampler
        self.num_samples = num_samples
        self.every_n_epochs = every_n_epochs

    @property
    def name(self) -> str:
        """What the result is logged as."""
        return f"sliced_wasserstein@{self.num_samples}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ScoreModule)
        if stage == "predict":
            return
        available = len(self._points(trainer, pl_module))
        if self.num_samples > available:
            raise ValueError(
                f"num_samples={self.num_samples}: the data holds out {available} points to compare with, "
                "so at most that many"
            )

    def _points(self, trainer: Trainer, pl_module: ScoreModule) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return held_out_points(self, data, pl_module, "FIDCallback")

    def evaluate(self, trainer: Trainer, pl_module: ScoreModule) -> None:
        points = self._points(trainer, pl_module)
        real = points[draw_some(self.num_samples, len(points), global_seed())]
        # the seed has no rank in it: a log that every process writes needs no synchronization if all write the same
        generator = torch.Generator(pl_module.device).manual_seed(derive_seed(global_seed(), Stream.DISTANCE))
        data = trainer.datamodule  # type: ignore[attr-defined]
        samples = pl_module.sample(
            self.sampler,
            self.num_samples,
            generator=generator,
            condition=to_compare(pl_module, self.num_samples, data, global_seed())(torch.arange(self.num_samples)),
            batch_size=self.num_samples,
        )
        # a model that diverges is for the user to see in the curve, not a reason to end the run
        broken = count_broken(samples)
        warn_of_broken(broken, self.num_samples, f"{self.name} is nan")
        value = math.nan if broken else sliced_wasserstein(samples, real, generator=generator)
        pl_module.log(self.name, value, on_step=False, on_epoch=True, prog_bar=True, sync_dist=False)
