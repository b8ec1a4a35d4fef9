"""Two checkpoints of a run: where it stands, to resume from, and its best, to keep."""

from datetime import timedelta

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from diffusion_lightning.callbacks.fid import FIDCallback


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt``: the state at the end of the newest epoch, or more often if asked.

    Args:
        every_n_train_steps: also save every so many optimizer steps.
        train_time_interval: also save every so much time.
    """

    def __init__(self, every_n_train_steps: int | None = None, train_time_interval: timedelta | None = None) -> None:
        once_per_epoch = every_n_train_steps is None and train_time_interval is None
        super().__init__(
            filename="last",
            every_n_epochs=1 if once_per_epoch else None,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/epoch=….ckpt``: the epoch with the lowest FID, or the lowest ``val/loss`` without FID."""

    def __init__(self) -> None:
        super().__init__(
            filename="epoch={epoch:04d}",
            auto_insert_metric_name=False,
            monitor="val/loss",
            mode="min",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FIDCallback):
                self.monitor = callback.name
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # FID is not measured every epoch, and ModelCheckpoint takes a metric that is not there yet for a mistake
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
