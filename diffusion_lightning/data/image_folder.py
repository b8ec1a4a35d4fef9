"""Any folder of pictures as a training set of square images."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from diffusion_lightning.data.arguments import check_at_least
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.pictures import PictureFiles, find_pictures, fits_in_memory, pictures_digest, search
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages

TRAINING = ("train", "training")
HELD_OUT = (("val", "valid", "validation", "dev", "eval", "evaluation"), ("test", "testing"))
"""Names of folders, in any case, that say what their pictures are for; those of the first words come first."""

NAMED = 10
"""Of many classes, how many are told by name."""


class ImageFolder(ImageDataModule):
    """A folder of pictures, searched recursively, as square images of one size.

    Pictures are all files that Pillow reads as such (png, jpg, jfif, webp, avif, jp2, gif, tif, bmp, ppm, …); no folder
    is searched twice, whatever links lead to it. At the start of a training one line says what was found.

    If `root` holds a folder ``train`` (or ``training``) and one for holding out, these are the training and the
    held-out pictures, and nothing else in `root` is read. For holding out is ``val``, ``valid``, ``validation``,
    ``dev``, ``eval`` or ``evaluation``, and ``test`` or ``testing`` where there is none of those; upper and lower case
    are the same. Otherwise `val_fraction` of all pictures is held out: those whose names have the smallest hashes, the
    same in every run.

    If every picture lies in a subfolder (of the folder ``train``, if all of them are in it or in the held-out one), the
    first-level subfolders, sorted, are the classes, named as they are; otherwise there is one class, 0.

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
        ValueError: if an argument is out of its range, a single picture is to be split, or two folders could be that
            of the training, or of the held-out pictures.
        FileNotFoundError: at the first use, if `root` is not a folder or has no pictures.
        OSError: naming all pictures that cannot be read, before a run begins; of those that stay on disk, the ones that
            are damaged in their midst only when their batch is read.
    """

    fid_feature = "inception"

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

    @property
    def class_names(self) -> list[str] | None:  # type: ignore[override]
        """The names of those subfolders, None if there is no class."""
        return self._classes or None

    def prepare_data(self) -> None:
        """Look for the pictures, say what there is, and whether they are pictures: all before a run begins."""
        _ = self._splits
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info(self.found())
        if not self._is_in_memory:  # else they are read as a whole
            self._files(self._splits[0] + self._splits[1]).sizes()

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training pictures and the held-out ones, each sorted by name."""
        train, held_out = self._splits
        if not self._is_in_memory:
            return self._files(train), self._files(held_out)
        # both at once, so that all that cannot be read are told of together
        whole = self._files(train + held_out).load()
        parts = (slice(0, len(train)), slice(len(train), None))
        first, second = (TensorImages(whole.images[part], whole.labels[part]) for part in parts)
        return first, second

    def found(self) -> str:
        """One line: how many pictures there are to train on and held out, the classes with theirs, what is left out."""
        train, held_out = self._splits
        how = f"folder {self._folders[1]}" if self._folders else f"val_fraction={self.val_fraction:g}"
        parts = [f"{len(train)} pictures to train on, {len(held_out)} held out ({how})"]
        if names := self._classes:
            counts = torch.bincount(self._labels(train), minlength=len(names)).tolist()
            told = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(f"{len(names)} class{'es' * (len(names) > 1)}, trained on: {', '.join(told[:NAMED])}{more}")
        else:
            parts.append("no classes")
        kinds, folders = self._left_out
        if kinds:
            ignored = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in kinds.most_common(NAMED))
            parts.append(f"ignored: {ignored}{' and others' if len(kinds) > NAMED else ''}")
        if folders:
            parts.append(f"folders not read: {', '.join(folders[:NAMED])}{', …' if len(folders) > NAMED else ''}")
        return f"ImageFolder {str(self.root)!r}: {'; '.join(parts)}"

    def _reference_digest(self) -> str:
        return pictures_digest(self._root, self._splits[0], self.shape)

    @property
    def _root(self) -> Path:
        return Path(os.path.expanduser(self.root))  # without a home as it is, where Path's raises

    @property
    def _is_in_memory(self) -> bool:
        if self.in_memory is not None:
            return self.in_memory
        train, held_out = self._splits
        return fits_in_memory(len(train) + len(held_out), self.shape)

    def _files(self, names: Sequence[str]) -> PictureFiles:
        paths = [self._root / name for name in names]
        return PictureFiles(paths, self._labels(names), self.image_size, self.channels)

    @cached_property
    def _folders(self) -> tuple[str, str] | None:
        """The folder of the training pictures and that of the held-out ones, if `root` has both."""
        if not self._root.is_dir():
            raise FileNotFoundError(f"data.root={str(self.root)!r} is not a folder; give a folder of pictures")
        folders = sorted(place.name for place in self._root.iterdir() if place.is_dir())
        training, *held_out = ([name for name in folders if name.lower() in words] for words in (TRAINING, *HELD_OUT))
        held_out = [names for names in held_out if names]
        if not training or not held_out:
            return None
        for names, use in ((training, "to train on"), (held_out[0], "to hold out")):
            if len(names) > 1:
                raise ValueError(
                    f"data.root={str(self.root)!r} has the folders {' and '.join(names)}, each of which may be the one "
                    f"{use}: keep one of them there"
                )
        return training[0], held_out[0][0]

    @cached_property
    def _splits(self) -> tuple[list[str], list[str]]:
        """Sorted names, relative to `root`, of the training pictures and the held-out ones."""
        if self._folders is not None:
            train, held_out = (self._pictures(f"{folder}/") for folder in self._folders)
            return train, held_out
        names = self._pictures("")
        if len(names) == 1:
            raise ValueError(f"data.root={str(self.root)!r} has a single picture; two are needed, to hold one out")
        count = min(max(round(self.val_fraction * len(names)), 1), len(names) - 1)
        chosen = set(sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:count])
        return [name for name in names if name not in chosen], sorted(chosen)

    def _pictures(self, folder: str) -> list[str]:
        names = [folder + name for name in find_pictures(self._root / folder)]
        if not names:
            raise FileNotFoundError(
                f"data.root={str(self.root)!r} has no pictures{f' in its folder {folder}' if folder else ''}; "
                "give a folder with png, jpg, webp or other pictures that Pillow reads, in it or below"
            )
        return names

    @cached_property
    def _left_out(self) -> tuple[Counter[str], list[str]]:
        """How many files of each suffix, and which folders, are not among the pictures."""
        if self._folders is None:
            return search(self._root)[1], []
        inside = [search(self._root / folder)[1] for folder in self._folders]
        beside = [place for place in sorted(self._root.iterdir()) if not place.name.startswith(".")]
        kinds = Counter(place.suffix.lower() for place in beside if place.is_file())
        folders = [place.name for place in beside if place.is_dir() and place.name not in self._folders]
        return sum(inside, kinds), folders

    @cached_property
    def _classes(self) -> list[str]:
        """Sorted names of the first-level subfolders, empty if some picture is in none."""
        names = [name.split("/")[self._class_level :] for split in self._splits for name in split]
        return sorted({name[0] for name in names}) if all(len(name) > 1 for name in names) else []

    @cached_property
    def _class_level(self) -> int:
        """How deep in `root` the folders of classes are."""
        tops = {name.split("/")[0].lower() for split in self._splits for name in split}
        return 1 if self._folders is not None or (len(tops) == 1 and tops <= set(TRAINING)) else 0

    def _labels(self, names: Sequence[str]) -> Tensor:
        if not self._classes:
            return torch.zeros(len(names), dtype=torch.int64)
        number = {label: i for i, label in enumerate(self._classes)}
        return torch.tensor([number[name.split("/")[self._class_level]] for name in names])
