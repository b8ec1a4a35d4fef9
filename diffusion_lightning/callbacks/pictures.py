"""Where callbacks leave their pictures: always on disk, and with every logger that shows pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor

from diffusion_lightning.images import is_picture, write_gif, write_png
from diffusion_lightning.loggers.guest import excused
from diffusion_lightning.loggers.pictures import show_animation, show_picture
from diffusion_lightning.training.module import ScoreModule

LENGTH, HOLD = 4.0, 2.0
"""Seconds that an animation takes until its last picture, and those that it then rests."""

SHORTEST, LONGEST = 0.05, 0.4
"""Seconds that another picture of an animation is shown at least and at most."""

_warnings = WarningCache()


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run; every process must ask, since Lightning broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def epoch_path(trainer: Trainer, name: str) -> Path:
    """``<run>/<name>/epoch=….png`` of this epoch; every process must ask, as for :func:`run_folder`."""
    return run_folder(trainer) / name / f"epoch={trainer.current_epoch:04d}.png"


def logged_step(trainer: Trainer) -> int:
    """What loggers call the step that was done last: they count from 0 what ``global_step`` counts from 1."""
    return max(trainer.global_step - 1, 0)


def leave_picture(trainer: Trainer, name: str, picture: Tensor, path: Path, caption: str = "") -> None:
    """Write a uint8 picture ``(3, H, W)`` to ``path`` and give it to the loggers as ``name``, with this step's metrics.

    The caption says what it shows, in the file, with the loggers and in the report.
    If it cannot be written that is warned of, once for its folder, and training goes on.
    """
    with told_of(f"pictures in {path.parent}"):
        write_png(picture, path, caption)
    for logger in trainer.loggers:
        with excused(logger):
            show_picture(logger, name, picture, path, logged_step(trainer))


def leave_animation(trainer: Trainer, name: str, pictures: Sequence[Tensor], path: Path) -> None:
    """Write uint8 pictures ``(3, H, W)`` as the GIF ``path`` and give it to the loggers as ``<name>_animation``.

    Its last picture is held for a while. What cannot be written is told as by :func:`leave_picture`.
    """
    time = min(max(LENGTH / max(len(pictures) - 1, 1), SHORTEST), LONGEST)
    with told_of(f"pictures in {path.parent}"):
        write_gif(pictures, path, [time] * (len(pictures) - 1) + [HOLD])
    if not path.is_file():
        return
    for logger in trainer.loggers:
        with excused(logger):
            show_animation(logger, name, pictures[-1].shape, path, logged_step(trainer))


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Inside, an OSError is warned of, once for each ``what``, and training goes on."""
    try:
        yield
    except OSError as error:
        _warnings.warn(f"{what} cannot be written ({error.strerror}): training goes on")


def ends_here(trainer: Trainer) -> bool:
    """Whether training ends with this epoch."""
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return last_epoch or last_step or trainer.should_stop


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch's end is an n-th one, or the end of training."""
    return (trainer.current_epoch + 1) % every_n_epochs == 0 or ends_here(trainer)


def example_shape(module: ScoreModule, data: Any) -> tuple[int, ...] | None:
    """The shape of one example, as the module knows it or will learn it from the data."""
    shape = module.shape if module.shape is not None else getattr(data, "shape", None)
    return tuple(shape) if shape is not None else None


def check_images(callback: Callback, module: ScoreModule, data: Any, for_points: str) -> None:
    """Raise a ValueError if the examples are known to be anything but images ``(C, H, W)`` in grey or colour.

    Args:
        callback: which needs them.
        module: that is trained.
        data: on these; None if it is not known.
        for_points: what to do for points instead.
    """
    name, shape = type(callback).__name__, example_shape(module, data)
    if shape is None or is_picture(shape):
        return
    message = f"{name} needs images (C, H, W) of 1 or 3 channels, but an example of this data has shape {shape}"
    numbers = "lightning sample --output samples.npz writes numbers"
    raise ValueError(f"{message}: {for_points if len(shape) == 1 else f'leave {name} out; {numbers}'}")


def check_at_least_one(**values: int) -> None:
    """Raise a ValueError naming the first argument that is not a whole number from 1 on."""
    for name, value in values.items():
        if not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value}: must be at least 1")


def share(total: int, world_size: int, rank: int) -> int:
    """How many of ``total`` items fall to a rank, so that the ranks' shares add up to ``total``."""
    return len(range(rank, total, world_size))
