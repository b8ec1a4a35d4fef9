"""What callbacks that draw samples have in common: the sampler must fit the process, and when a measurement is due."""

from abc import abstractmethod

from lightning.pytorch import Callback, LightningModule, Trainer

from diffusion_lightning.callbacks.pictures import is_due
from diffusion_lightning.module import ScoreModule
from diffusion_lightning.samplers import Sampler


class SamplingCallback(Callback):
    """Draws samples by ``sampler``, the module's own if it is None, after every ``every_n_epochs``-th epoch.

    Raises:
        ValueError: at the start if the sampler does not fit the SDE.
    """

    sampler: Sampler | None
    every_n_epochs: int

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ScoreModule)
        if self.sampler is not None:
            self.sampler.check(pl_module.denoiser.sde)


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
