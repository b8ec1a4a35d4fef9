"""Any folder of pictures as a training set of square images."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from diffusion_lightning.data.base import ImageDataModule, ImageSet, TensorImages, check_at_least
from diffusion_lightning.progress import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
IN_MEMORY_BYTES = 2 * 2**30


def find_pictures(folder: Path) -> list[str]:
    """Sorted names, relative to `folder` and with forward slashes, of all pictures in it and below; none if hidden."""
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            (Path(parent) / name).relative_to(folder).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(names)


def pictures_digest(folder: Path, names: Sequence[str], shape: Sequence[int]) -> str:
    """64 hexadecimal digits that identify pictures of a folder, served as images of this shape.

    Of names, sizes and times, not of pixels: it must not take reading a million pictures to find cached results.
    """
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    for name in names:
        status = (folder / name).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def read_picture(path: Path, image_size: int, channels: int) -> Tensor:
    """Decode a picture, resize its shorter side to `image_size` (bicubic, antialiased) and crop the centre.

    It is turned upright first if its camera recorded a rotation. Transparency is dropped, and of an animation the first
    frame is taken.

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        OSError: one line naming the file, if it cannot be read as an 8-bit picture.
    """
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"pixels of mode {file.mode} are not 8-bit")
            picture = ImageOps.exif_transpose(file)
            picture.info.pop("transparency", None)  # Pillow warns of every palette whose transparency it drops
            picture = picture.convert("L" if channels == 1 else "RGB")
            square = center_crop(resize(picture, image_size, InterpolationMode.BICUBIC), [image_size, image_size])
    except Exception as error:  # Pillow's decoders raise many kinds
        raise OSError(f"cannot read the picture {path}: {' '.join(str(error).split())}") from error
    return pil_to_tensor(square)


class PictureFiles(Dataset[tuple[Tensor, Tensor]]):
    """Pictures that stay on disk and are decoded batch by batch.

    Args:
        paths: the N files.
        labels: int64 (N,).
        image_size: height and width of the images.
        channels: 1 or 3.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, image_size: int, channels: int) -> None:
        self.paths = paths
        self.labels = labels
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The batch of these pictures: uint8 (B, C, H, W) and int64 (B,)."""
        index = torch.as_tensor(indices)
        return torch.stack([self._read(self.paths[i]) for i in index.tolist()]), self.labels.index_select(0, index)

    def load(self, progress: bool = True) -> TensorImages:
        """All of them in memory, decoded by a pool of threads, behind a progress bar unless told not to."""
        images = torch.empty(len(self), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        quiet = not progress or rank_zero_only.rank != 0  # type: ignore[attr-defined]
        bar = progress_bar(total=len(self), desc="reading pictures", unit="picture", disable=quiet)
        with ThreadPoolExecutor() as pool, bar:
            for image, read in zip(images, pool.map(self._read, self.paths), strict=True):
                image.copy_(read)
                bar.update()
        return TensorImages(images, self.labels)

    def _read(self, path: Path) -> Tensor:
        return read_picture(path, self.image_size, self.channels)


class ImageFolder(ImageDataModule):
    """A folder of pictures (png, jpg, bmp, webp, gif, tif), searched recursively, as square images of one size.

    If `root` holds a folder `train` and a folder `val` or `test` (`val` where there are both), these are the training
    and the held-out pictures. Otherwise `val_fraction` of all pictures is held out: those whose names have the smallest
    hashes, the same in every run. If every picture lies in a subfolder, the first-level subfolders, sorted, are the
    classes; otherwise there is one class, 0.

    Args:
        root: the folder of pictures.
        image_size: height and width of the images: the shorter side is resized to it, then the centre cropped.
        channels: 3 for colour, 1 for gray.
        val_fraction: share of the pictures that is held out, in (0, 1); at least one picture is.
        flip: mirror training images at random.
        in_memory: decode everything once into memory, or each batch from disk when it is needed (then give
            `num_workers`); by default in memory if that takes less than 2 GiB.
        kwargs: those of `ImageDataModule`.

    Raises:
        ValueError: if an argument is out of its range, or a single picture is to be split.
        FileNotFoundError: at the first use, if `root` is not a folder or has no pictures.
        OSError: naming the file, when a picture cannot be read.
    """

    fid_feature: ClassVar[Literal["mnist", "inception"]] = "inception"

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        channels: Literal[1, 3] = 3,
        val_fraction: float = 0.05,
        flip: bool = False,
        in_memory: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least(1, image_size=image_size)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, both excluded, got {val_fraction}")
        self.root = root
        self.image_size = image_size
        self.channels = channels
        self.val_fraction = val_fraction
        self.flip = flip
        self.in_memory = in_memory
        self.shape = (channels, image_size, image_size)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of first-level subfolders with pictures, or 1 if there is no class; looks at names only."""
        return max(len(self._classes), 1)

    def prepare_data(self) -> None:
        """Look for the pictures, so that a folder without any is told of before a run begins."""
        _ = self._splits

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training pictures and the held-out ones, each sorted by name."""
        train, held_out = (
            PictureFiles([self._root / name for name in names], self._labels(names), self.image_size, self.channels)
            for names in self._splits
        )
        in_memory = self.in_memory
        if in_memory is None:
            in_memory = (len(train) + len(held_out)) * self.channels * self.image_size**2 < IN_MEMORY_BYTES
        return (train.load(), held_out.load()) if in_memory else (train, held_out)

    def _reference_digest(self) -> str:
        return pictures_digest(self._root, self._splits[0], self.shape)

    @property
    def _root(self) -> Path:
        return Path(os.path.expanduser(self.root))  # without a home as it is, where Path's raises

    @cached_property
    def _held_out_folder(self) -> str | None:
        if not (self._root / "train").is_dir():
            return None
        return next((name for name in ("val", "test") if (self._root / name).is_dir()), None)

    @cached_property
    def _splits(self) -> tuple[list[str], list[str]]:
        """Sorted names, relative to `root`, of the training pictures and the held-out ones."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"data.root={str(self.root)!r} is not a folder; give a folder of pictures")
        if self._held_out_folder is not None:
            return self._pictures("train/"), self._pictures(f"{self._held_out_folder}/")
        names = self._pictures("")
        if len(names) == 1:
            raise ValueError(f"data.root={str(self.root)!r} has a single picture; two are needed, to hold one out")
        count = min(max(round(self.val_fraction * len(names)), 1), len(names) - 1)
        held_out = set(sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:count])
        return [name for name in names if name not in held_out], sorted(held_out)

    def _pictures(self, folder: str) -> list[str]:
        names = [folder + name for name in find_pictures(self._root / folder)]
        if not names:
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} has no pictures{f' in its folder {folder}' if folder else ''}; "
                f"give a folder with {', '.join(suffix[1:] for suffix in SUFFIXES)} files in it or below"
            )
        return names

    @cached_property
    def _classes(self) -> list[str]:
        """Sorted names of the first-level subfolders, empty if some picture is in none."""
        names = [name.split("/")[self._class_level :] for split in self._splits for name in split]
        return sorted({name[0] for name in names}) if all(len(name) > 1 for name in names) else []

    @property
    def _class_level(self) -> int:
        return 0 if self._held_out_folder is None else 1

    def _labels(self, names: Sequence[str]) -> Tensor:
        if not self._classes:
            return torch.zeros(len(names), dtype=torch.int64)
        number = {label: i for i, label in enumerate(self._classes)}
        return torch.tensor([number[name.split("/")[self._class_level]] for name in names])
