"""Where callbacks leave their pictures: always on disk, and with every logger that shows pictures."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor

from diffusion_lightning.guest import excused
from diffusion_lightning.images import write_png
from diffusion_lightning.module import ScoreModule

_warnings = WarningCache()


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run; every process must ask, since Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def epoch_path(trainer: Trainer, name: str) -> Path:
    """``<run>/<name>/epoch=….png`` of this epoch; every process must ask, as for :func:`run_folder`."""
    return run_folder(trainer) / name / f"epoch={trainer.current_epoch:04d}.png"


def leave_picture(trainer: Trainer, name: str, picture: Tensor, path: Path) -> None:
    """Write a uint8 picture ``(3, H, W)`` to ``path`` and give it to the loggers as ``name``, with this step's metrics.

    If it cannot be written that is warned of, once for its folder, and training goes on.
    """
    try:
        write_png(picture, path)
    except OSError as error:
        _warnings.warn(f"pictures in {path.parent} cannot be written ({error.strerror}): training goes on")
    step = max(trainer.global_step - 1, 0)  # loggers count from 0 what global_step counts from 1
    for logger in trainer.loggers:
        with excused(logger):
            if isinstance(logger, WandbLogger) and path.is_file():
                logger.log_image(name, [str(path)], step=step, caption=[path.stem])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, picture, global_step=step)


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch's end is an n-th one, or the end of training."""
    epoch = trainer.current_epoch + 1
    last_epoch = trainer.max_epochs not in (None, -1) and epoch >= trainer.max_epochs
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return epoch % every_n_epochs == 0 or last_epoch or last_step or trainer.should_stop


def example_shape(trainer: Trainer, module: ScoreModule) -> tuple[int, ...] | None:
    """The shape of one example, as the module knows it or will learn it from the data, which is set up before it."""
    shape = module.shape if module.shape is not None else getattr(trainer.datamodule, "shape", None)  # type: ignore[attr-defined]
    return tuple(shape) if shape is not None else None


def check_images(callback: Callback, trainer: Trainer, module: ScoreModule) -> None:
    """Raise a ValueError if the examples are known to be anything but images ``(C, H, W)``."""
    shape = example_shape(trainer, module)
    if shape is not None and len(shape) != 3:
        raise ValueError(
            f"{type(callback).__name__} shows images (C, H, W), but an example of this data has shape {shape}: "
            "use VectorField for points"
        )


def check_at_least_one(**values: int) -> None:
    """Raise a ValueError naming the first argument that is not a whole number from 1 on."""
    for name, value in values.items():
        if not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value}: must be at least 1")


def share(total: int, world_size: int, rank: int) -> int:
    """How many of ``total`` items fall to a rank, so that the ranks' shares add up to ``total``."""
    return len(range(rank, total, world_size))
