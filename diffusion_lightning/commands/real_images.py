"""Where the real images are that samples are compared with: a data module, the checkpoint's run, or a folder."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import LightningDataModule

import diffusion_lightning.data  # noqa: F401 — so that its classes are known by their short names
from diffusion_lightning.commands.comparison import RealImages
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.loader import useful_workers
from diffusion_lightning.data.names import Names, Paths
from diffusion_lightning.data.pictures import PictureFiles, find_pictures, fits_in_memory, pictures_digest
from diffusion_lightning.data.tensor_images import ImageSet


def add_data_option(parser: OneLineParser, help: str) -> None:
    """Add ``--data``, any data module; those of this package by their short names."""
    parser.add_argument("--data", type=LightningDataModule | None, default=None, help=help)


def data_of_run(run: Path | None) -> LightningDataModule:
    """The data module that a run's ``config.yaml`` describes.

    Raises:
        UsageError: if there is no run, or it cannot be made.
    """
    way_out = "give --data, such as --data EmbeddedMNIST, or --reference"
    if run is None:
        raise UsageError(f"data: the checkpoint lies in no run whose config.yaml names its training data: {way_out}")
    parser = OneLineParser()
    parser.add_argument("--data", type=LightningDataModule, required=True)
    try:
        recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        return parser.instantiate(parser.parse_object({"data": recipe})).data
    except Exception as error:  # of any type: the file may hold anything by now
        reason = " ".join(str(error).split())
        raise UsageError(f"data: {run / 'config.yaml'} names none that can be made ({reason}): {way_out}") from error


def image_data(data: LightningDataModule, shape: tuple[int, ...]) -> ImageDataModule:
    """The data module itself, after a look at it.

    Raises:
        UsageError: if it is not of images of this shape, (C, H, W).
    """
    name = type(data).__name__
    if not isinstance(data, ImageDataModule):
        raise UsageError(f"data={name}: is not of images: give EmbeddedMNIST, CIFAR10, ImageFolder, …")
    if tuple(data.shape) != shape:
        raise UsageError(
            f"data={name}: has images of shape {tuple(data.shape)}: must be {shape}, as those that the checkpoint was "
            "trained on"
        )
    return data


def images_of_data(data: ImageDataModule, from_run: bool) -> RealImages:
    """The training images of a data module, which are downloaded if need be.

    Raises:
        UsageError: if they cannot be read and are ``from_run``: the user has not named them.
        OSError, ValueError: as the data module does, otherwise.
    """
    try:
        data.prepare_data()
        data.setup("fit")
    except (OSError, ValueError) as error:
        if from_run:
            raise UsageError(f"the run's training data: {error}; or give --data or --reference") from error
        raise
    return RealImages(type(data).__name__, data.train_images, data.fingerprint, data.num_workers)


def images_of_folder(folder: Path, shape: tuple[int, ...], quiet: bool) -> RealImages:
    """The pictures in a folder and below, none of them resized.

    Raises:
        UsageError: if there are fewer than two, or one is not of this shape, (C, H, W), or is no picture.
        OSError: naming all that cannot be read as a whole.
    """
    channels, height, width = shape
    if height != width:
        raise UsageError(f"reference={str(folder)!r}: folders are of square images, the samples {shape}: give --data")
    names = Names(find_pictures(folder))
    if len(names) < 2:
        raise UsageError(f"reference={str(folder)!r}: holds {len(names) or 'no'} pictures: must hold at least 2")
    files = PictureFiles(Paths(folder, names), torch.zeros(len(names), dtype=torch.int64), height, channels)
    try:
        sizes = files.sizes(progress=not quiet)
    except OSError as error:
        raise UsageError(f"reference: {error}") from error
    for name, size in zip(names, sizes, strict=True):
        if size != (width, height):
            raise UsageError(
                f"reference={str(folder)!r}: {name} has {size[0]} × {size[1]} pixels: must have {width} × {height}, as "
                "the samples; --data ImageFolder resizes"
            )
    in_memory = fits_in_memory(len(names), shape)
    images: ImageSet = files.load(progress=not quiet) if in_memory else files
    workers = 0 if in_memory else useful_workers()
    return RealImages(str(folder), images, lambda: pictures_digest(folder, names, shape)[:16], workers)
