"""What a folder of pictures holds: which pictures are to train on and which held out, their classes, what is left out.

It is found by one walk through the folder, and is small: a process can tell it to others.
"""

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.data.metadata import Metadata, read_metadata
from diffusion_lightning.data.names import Names
from diffusion_lightning.data.pictures import search

TRAINING = ("train", "training")
HELD_OUT = (("val", "valid", "validation", "dev", "eval", "evaluation"), ("test", "testing"))
"""Names of folders, in any case, that say what their pictures are for; those of the first words come first."""

NAMED = 10
"""Of many classes, kinds of files or folders, how many are told by name."""


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder.

    Attributes:
        root: the folder, as it was given.
        names: of the N pictures, relative to the folder, with forward slashes: those to train on, sorted, then those
            held out, sorted.
        train: how many of them are to train on.
        labels: of each, int64 (N,).
        class_names: what each label stands for; empty if there are no classes, and all labels are 0.
        choice: how those held out were chosen, in a word or two.
        kinds: how many files of each suffix are not among the pictures.
        unread: the folders that were not looked into.
        metadata: what its columns say of them, if any were asked for; one of words makes `labels` and `class_names`.
    """

    root: str
    names: Names
    train: int
    labels: Tensor
    class_names: list[str]
    choice: str
    kinds: Counter[str]
    unread: list[str]
    metadata: Metadata | None

    @property
    def path(self) -> Path:
        """The folder, a ``~`` at its beginning being the user's home."""
        return _path(self.root)

    def summary(self) -> str:
        """How many pictures there are to train on and held out, the classes with theirs, what is left out."""
        parts = [f"{self.train} pictures to train on, {len(self.names) - self.train} held out ({self.choice})"]
        if names := self.class_names:
            counts = torch.bincount(self.labels[: self.train], minlength=len(names)).tolist()
            told = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(f"{len(names)} class{'es' * (len(names) > 1)}, trained on: {', '.join(told[:NAMED])}{more}")
        else:
            parts.append("no classes")
        if self.metadata is not None:
            parts.append(self.metadata.summary())
        if kinds := self.kinds:
            ignored = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in kinds.most_common(NAMED))
            parts.append(f"ignored: {ignored}{' and others' if len(kinds) > NAMED else ''}")
        if unread := self.unread:
            parts.append(f"folders not read: {', '.join(unread[:NAMED])}{', …' if len(unread) > NAMED else ''}")
        return "; ".join(parts)


def look_into(root: str, val_fraction: float, columns: Sequence[str] | None = None) -> PictureFolder:
    """Search a folder, as `ImageFolder` says.

    Args:
        root: the folder; it is called ``data.root`` in errors.
        val_fraction: share of the pictures that is held out, in (0, 1), where no folders say which.
        columns: of the metadata in the folder or in those of the parts, if they are to be read.

    Raises:
        FileNotFoundError: if it is not a folder or has no pictures, or, with columns, as `read_metadata` does.
        ValueError: if a single picture is to be split, or two folders could be that of the training, or of the
            held-out pictures; with columns as `read_metadata` does.
    """
    parts = _parts(root)
    if parts is None:
        found, kinds = _pictures(root, "")
        if len(found) == 1:
            raise ValueError(f"data.root={root!r} has a single picture; two are needed, to hold one out")
        unread: list[str] = []
        choice = f"val_fraction={val_fraction:g}"
        train, names = _split(found, val_fraction)
    else:
        (training, kinds_trained), (held_out, kinds_held_out) = (_pictures(root, f"{part}/") for part in parts)
        beside = [place for place in sorted(_path(root).iterdir()) if not place.name.startswith(".")]
        kinds_beside = Counter(place.suffix.lower() for place in beside if place.is_file())
        kinds = kinds_beside + kinds_trained + kinds_held_out
        unread = [place.name for place in beside if place.is_dir() and place.name not in parts]
        choice = f"folder {parts[1]}"
        train, names = len(training), Names(chain(training, held_out))
    class_names, labels = _classes(names, has_parts=parts is not None)
    metadata = None
    if columns is not None:
        alone = [names[0].partition("/")[0]] if parts is None and _is_for_training(names) else []
        folders = ["", *(f"{folder}/" for folder in parts or alone)]
        metadata = read_metadata(root, _path(root), folders, names, unread, columns)
        kinds -= Counter(os.path.splitext(file)[1] for file in metadata.files)
        if metadata.labels is not None:
            class_names, labels = metadata.class_names, metadata.labels
    return PictureFolder(root, names, train, labels, class_names, choice, kinds, unread, metadata)


def _path(root: str) -> Path:
    return Path(os.path.expanduser(root))  # without a home as it is, where Path's raises


def _parts(root: str) -> tuple[str, str] | None:
    """The folder of the training pictures and that of the held-out ones, if the folder has both."""
    if not _path(root).is_dir():
        raise FileNotFoundError(f"data.root={root!r} is not a folder; give a folder of pictures")
    folders = sorted(place.name for place in _path(root).iterdir() if place.is_dir())
    training, *held_out = ([name for name in folders if name.lower() in words] for words in (TRAINING, *HELD_OUT))
    held_out = [names for names in held_out if names]
    if not training or not held_out:
        return None
    for names, use in ((training, "to train on"), (held_out[0], "to hold out")):
        if len(names) > 1:
            raise ValueError(
                f"data.root={root!r} has the folders {' and '.join(names)}, each of which may be the one {use}: keep "
                "one of them there"
            )
    return training[0], held_out[0][0]


def _pictures(root: str, folder: str) -> tuple[Names, Counter[str]]:
    """The names of the pictures in a folder of the root, and how many other files of each suffix it has."""
    names, kinds = search(_path(root) / folder)
    if not names:
        raise FileNotFoundError(
            f"data.root={root!r} has no pictures{f' in its folder {folder}' if folder else ''}; "
            "give a folder with png, jpg, webp or other pictures that Pillow reads, in it or below"
        )
    return Names(folder + name for name in names), kinds


def _split(names: Names, val_fraction: float) -> tuple[int, Names]:
    """How many are to train on, and the names with those held out behind: the ones of the smallest hashes."""
    count = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    hashes = ((hashlib.sha256(os.fsencode(name)).digest(), place) for place, name in enumerate(names))
    chosen = {place for _, place in heapq.nsmallest(count, hashes)}
    train = (name for place, name in enumerate(names) if place not in chosen)
    return len(names) - count, Names(chain(train, (names[place] for place in sorted(chosen))))


def _classes(names: Names, has_parts: bool) -> tuple[list[str], Tensor]:
    """The sorted names of the folders that are classes, none if some picture is in none; and each picture's label."""
    level = 1 if has_parts or _is_for_training(names) else 0
    # a picture in a class's folder has more than this many folders and its own name
    classes = set()
    for name in names:
        folders = name.split("/", level + 1)
        if len(folders) < level + 2:
            return [], torch.zeros(len(names), dtype=torch.int64)
        classes.add(folders[level])
    number = {name: label for label, name in enumerate(sorted(classes))}
    labels = torch.tensor([number[name.split("/", level + 1)[level]] for name in names])
    return list(number), labels


def _is_for_training(names: Sequence[str]) -> bool:
    """Whether all are in one folder whose name says that they are to train on."""
    top = _top(names[0])
    return top in TRAINING and all(_top(name) == top for name in names)


def _top(name: str) -> str:
    return name.partition("/")[0].lower()
