"""How a logger shows a picture that is on disk."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from diffusion_lightning.images import caption_of


def show_picture(logger: Logger, name: str, picture: Tensor, path: Path, step: int) -> None:
    """Give a logger that shows pictures the uint8 one ``(3, H, W)`` that ``path`` holds, as ``name``.

    W&B is given the file, if it is there.
    """
    if isinstance(logger, WandbLogger) and path.is_file():
        show_in_wandb(logger, name, path, step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, global_step=step)


def show_animation(logger: Logger, name: str, shape: Sequence[int], path: Path, step: int) -> None:
    """Give a logger that shows pictures the GIF ``path`` of frames ``(C, H, W)``, as ``<name>_animation``."""
    if isinstance(logger, WandbLogger):
        show_in_wandb(logger, name, path, step)
    elif isinstance(logger, TensorBoardLogger):
        _animate_in_tensorboard(logger, name, shape, path, step)


def show_in_wandb(logger: WandbLogger, name: str, path: Path, step: int) -> None:
    """Give W&B a picture as it is on disk, captioned, as ``name``; an animation, a GIF, as ``<name>_animation``."""
    if path.suffix == ".gif":
        logger.log_video(_animation(name), [str(path)], step=step, caption=[path.stem])
    else:
        caption = ": ".join(filter(None, (path.stem, caption_of(path))))
        logger.log_image(name, [str(path)], step=step, caption=[caption])


def _animate_in_tensorboard(logger: TensorBoardLogger, name: str, shape: Sequence[int], path: Path, step: int) -> None:
    """A GIF among the images, which TensorBoard shows moving: what ``add_video`` writes, without the moviepy it needs.

    tensorboardX, which Lightning takes where TensorBoard is not installed, gets none.
    """
    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
    except ImportError:
        return
    channels, height, width = shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
    summary = Summary(value=[Summary.Value(tag=_animation(name), image=image)])
    logger.experiment.file_writer.add_summary(summary, step)


def _animation(name: str) -> str:
    return f"{name}_animation"
