"""What callbacks that draw samples have in common: the sampler must fit the process, and when a measurement is due."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from diffusion_lightning.callbacks.pictures import check_images, example_shape, is_due
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.module import ScoreModule

SHOWN = 1.01
"""The largest value of an image that is not worth a warning: rounding may exceed 1 a little."""


class SamplingCallback(Callback):
    """Draws samples by ``sampler``, the module's own if it is None, after every ``every_n_epochs``-th epoch.

    Raises:
        ValueError: at the start if the sampler does not fit the SDE, the guidance not the model, or the data are not
            such as it needs.
    """

    sampler: Sampler | None
    guidance: GuidanceChoice = "own"
    """Steers the samples: the module's own, None for none, or a class and its arguments."""
    every_n_epochs: int
    num_samples: int

    per_evaluation = 1
    """Evaluations of the network for each that the sampler asks for."""

    @property
    def num_drawn(self) -> int:
        """Samples that are drawn each time, by all processes together."""
        return self.num_samples

    def check(self, module: ScoreModule, data: Any) -> None:
        """Raise an error if it could not do its work; the command asks before the run has a folder.

        Args:
            module: that is trained.
            data: the data module, which may not have been set up; None if there is none.

        Raises:
            ValueError: if the sampler does not fit the SDE, the guidance not the model, or the data are not such as it
                needs.
            FileNotFoundError: if a worse model's checkpoint is not there.
        """
        if self.sampler is not None:
            self.sampler.check(module.denoiser.sde)
        module.guided(self.guidance, example_shape(module, data))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ScoreModule)
        self.check(pl_module, trainer.datamodule)  # type: ignore[attr-defined]


class PictureCallback(SamplingCallback):
    """Shows samples as pictures."""

    _has_looked = False

    def check(self, module: ScoreModule, data: Any) -> None:
        """As its parent's; a ValueError also for data that are known not to be grey or coloured images."""
        super().check(module, data)
        check_images(self, module, data, for_points="use VectorField for points")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Warn, before the first step, of images whose values a picture cannot show."""
        if self._has_looked:
            return
        self._has_looked = True
        largest = batch[0].abs().max().item()
        if largest > SHOWN:
            rank_zero_warn(
                f"{type(self).__name__} shows values from -1 to 1, those of the training images reach {largest:.4g}: "
                "what is beyond is drawn as black or white; scale the data to [-1, 1]"
            )

    def _of_all(self, pl_module: ScoreModule, states: Tensor, total: int) -> Tensor:
        """The states ``(frames, share, C, H, W)`` of all processes' samples as ``(frames, total, C, H, W)``."""
        gathered = pl_module.all_gather(states)
        assert isinstance(gathered, Tensor)
        by_process = gathered.reshape(-1, *states.shape)
        return by_process.transpose(0, 1).flatten(1, 2)[:, :total]


class Measurement(SamplingCallback):
    """Measures samples after due epochs of training, and after ``lightning validate`` and ``lightning test``."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, pl_module: ScoreModule) -> None:
        """Measure, and log the result; every process enters it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if is_due(trainer, self.every_n_epochs):
            self.evaluate(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if trainer.state.fn == "validate":
            self.evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        self.evaluate(trainer, pl_module)

    def rows_of_all(self, pl_module: ScoreModule, own: Tensor, total: int) -> Tensor:
        """The rows ``(total, F)`` of which each process has every so manieth; every process enters it."""
        world_size = pl_module.trainer.world_size
        padded = own.new_zeros(-(-total // world_size), own.shape[1])
        padded[: len(own)] = own
        gathered = pl_module.all_gather(padded)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *padded.shape).transpose(0, 1).flatten(0, 1)[:total]
