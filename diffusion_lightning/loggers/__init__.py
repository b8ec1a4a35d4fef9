"""Where a run's metrics go: its own folder, W&B, TensorBoard."""

from diffusion_lightning.loggers.run_logger import RunLogger
from diffusion_lightning.loggers.tensorboard_logger import TensorBoardLogger
from diffusion_lightning.loggers.wandb_logger import WandbLogger

__all__ = ["RunLogger", "TensorBoardLogger", "WandbLogger"]
