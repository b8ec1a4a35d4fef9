"""Where callbacks leave their pictures: always on disk, and with every logger that shows pictures."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from diffusion_lightning.images import write_png


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run; every process must ask, since Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def leave_picture(trainer: Trainer, name: str, picture: Tensor, path: Path) -> None:
    """Write a uint8 picture ``(3, H, W)`` to ``path`` and give it to the loggers as ``name``, at this global step."""
    write_png(picture, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step, caption=[path.stem])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, global_step=trainer.global_step)


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch's end is an n-th one, or the end of training."""
    epoch = trainer.current_epoch + 1
    last_epoch = trainer.max_epochs not in (None, -1) and epoch >= trainer.max_epochs
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return epoch % every_n_epochs == 0 or last_epoch or last_step or trainer.should_stop


def check_at_least_one(**values: int) -> None:
    """Raise a ValueError naming the first argument that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def share(total: int, world_size: int, rank: int) -> int:
    """How many of ``total`` items fall to a rank, so that the ranks' shares add up to ``total``."""
    return len(range(rank, total, world_size))
