"""Files of pictures: which of a folder's files are some, and what they hold."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from tqdm import tqdm

from diffusion_lightning.conditions import Condition
from diffusion_lightning.data.tensor_images import TensorImages, conditions_of
from diffusion_lightning.messages import is_first_process
from diffusion_lightning.progress import progress_bar

T = TypeVar("T")

NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""What Pillow knows by name but cannot turn into 8-bit pixels by itself."""

NAMED = 5
"""Of many pictures that cannot be read, how many are told by name."""

ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}
"""What a whole file of these formats ends with."""

IN_MEMORY_BYTES = 2 * 2**30

AT_ONCE = 32
"""Files opened at once: on a network's disk, most of the time is spent waiting."""

WAITING = 4096
"""Files that threads are told of at once."""


@cache
def picture_suffixes() -> frozenset[str]:
    """Those of the files that Pillow, as it is installed, reads as 8-bit pictures; with the dot, in lower case."""
    suffixes = Image.registered_extensions()
    readable = {suffix for suffix, form in suffixes.items() if form in Image.OPEN and form not in NO_PICTURES}
    return frozenset(readable - {".pfm"})  # of floats


def search(folder: Path) -> tuple[list[str], Counter[str]]:
    """All files in a folder and below, apart from hidden ones.

    Links to folders are followed, but no folder is entered twice, by its own name if it has one here, nor one that the
    search began in.

    Returns:
        The sorted names of the pictures, relative to `folder` and with forward slashes; and how many other files there
        are of each suffix, in lower case and ``""`` for none.
    """
    names: list[str] = []
    others: Counter[str] = Counter()
    start, seen, links = os.path.realpath(folder), set[str](), [str(folder)]
    while links:
        link = links.pop(0)
        target = os.path.realpath(link)
        # a link back to where one came from would lead to everything beside it, too
        if target in seen or (seen and Path(start).is_relative_to(target)):
            continue
        for parent, folders, files in os.walk(link):
            seen.add(os.path.realpath(parent))
            folders[:] = [name for name in folders if not name.startswith(".")]
            links += sorted(path for name in folders if os.path.islink(path := os.path.join(parent, name)))
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in seen]
            place = "".join(f"{part}/" for part in Path(parent).relative_to(folder).parts)
            for name in files:
                if name.startswith("."):
                    continue
                suffix = os.path.splitext(name)[1].lower()
                if suffix in picture_suffixes():
                    names.append(place + name)
                else:
                    others[suffix] += 1
    names.sort()
    return names, others


def find_pictures(folder: Path) -> list[str]:
    """Sorted names, relative to `folder` and with forward slashes, of all pictures in it and below; none if hidden."""
    return search(folder)[0]


def pictures_digest(folder: Path, names: Iterable[str], shape: Sequence[int]) -> str:
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
        return _decode(path, image_size, channels)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise unreadable([(path, _reason(error))]) from error


def unreadable(failures: Sequence[tuple[Path, str]]) -> OSError:
    """The error that names pictures which cannot be read, each with the reason, in one line; of many the first few."""
    if len(failures) == 1:
        path, reason = failures[0]
        return OSError(f"cannot read the picture {path}: {reason}; replace or remove it")
    folder = os.path.commonpath([path.parent for path, _ in failures])
    named = ", ".join(f"{path.relative_to(folder).as_posix()} ({reason})" for path, reason in failures[:NAMED])
    more = f" and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
    return OSError(f"cannot read {len(failures)} pictures in {folder}: {named}{more}; replace or remove them")


def fits_in_memory(count: int, shape: tuple[int, ...]) -> bool:
    """Whether so many images of one byte a value are held in memory rather than decoded batch by batch."""
    return count * math.prod(shape) < IN_MEMORY_BYTES


class PictureFiles(Dataset[tuple[Tensor, Condition]]):
    """Pictures that stay on disk and are decoded batch by batch.

    Args:
        paths: the N files.
        labels: int64 (N,).
        image_size: height and width of the images.
        channels: 1 or 3.
        vectors: float32 (N, D), conditions beside the labels, if given.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, image_size: int, channels: int, vectors: Tensor | None = None
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.vectors = vectors
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int] | Tensor) -> tuple[Tensor, Condition]:
        """The batch of these pictures, uint8 (B, C, H, W), and its conditions as those of `TensorImages`.

        Raises:
            OSError: naming all of them that cannot be read.
        """
        index = torch.as_tensor(indices)
        paths = [self.paths[i] for i in index.tolist()]
        read = _all_read(paths, map(self._read, paths))
        return torch.stack(read), conditions_of(index, self.labels, self.vectors)

    def load(self, progress: bool = True) -> TensorImages:
        """All of them in memory, decoded by a pool of threads, behind a progress bar unless told not to.

        Raises:
            OSError: naming all that cannot be read.
        """
        images = torch.empty(len(self), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        for i, image in enumerate(self._each(self._read, None, "reading pictures", progress)):
            images[i] = image
        return TensorImages(images, self.labels, vectors=self.vectors)

    def sizes(self, progress: bool = True) -> list[tuple[int, int]]:
        """Width and height of each file, by its first and last bytes; what is wrong in between shows when decoded.

        Raises:
            OSError: naming all that are no 8-bit pictures, and PNG, JPEG and GIF that are cut off.
        """
        return list(self._each(_size, AT_ONCE, "looking at pictures", progress))

    def check(self) -> None:
        """Look at each file as `sizes` does, and raise what it raises; nothing is kept."""
        for _ in self._each(_size, AT_ONCE, "looking at pictures", progress=True):
            pass

    def _each(self, read: Callable[[Path], T | str], threads: int | None, what: str, progress: bool) -> Iterator[T]:
        """What is read of each file, in their order; then an OSError if of any it was a reason why it cannot be."""
        failures = []
        with ThreadPoolExecutor(threads) as pool, self._bar(what, progress) as bar:
            # part by part, for each file that waits for a thread takes a kilobyte
            for first in range(0, len(self), WAITING):
                paths = list(self.paths[first : first + WAITING])
                for path, outcome in zip(paths, pool.map(read, paths), strict=True):
                    if isinstance(outcome, str):
                        failures.append((path, outcome))
                    else:
                        yield outcome
                    bar.update()
        if failures:
            raise unreadable(failures)

    def _read(self, path: Path) -> Tensor | str:
        """The picture, or why it cannot be read."""
        try:
            return _decode(path, self.image_size, self.channels)
        except Exception as error:
            return _reason(error)

    def _bar(self, what: str, progress: bool) -> tqdm:
        shown = progress and is_first_process()
        return progress_bar(total=len(self), desc=what, unit="picture", disable=not shown)


def _all_read(paths: Sequence[Path], outcomes: Iterable[T | str]) -> list[T]:
    """What has been read of the paths; an OSError if any outcome is a reason why it could not."""
    outcomes = list(outcomes)
    failures = [(path, what) for path, what in zip(paths, outcomes, strict=True) if isinstance(what, str)]
    if failures:
        raise unreadable(failures)
    return [what for what in outcomes if not isinstance(what, str)]


def _decode(path: Path, image_size: int, channels: int) -> Tensor:
    with Image.open(path) as file:
        _check_depth(file)
        picture = ImageOps.exif_transpose(file)
        picture.info.pop("transparency", None)  # Pillow warns of every palette whose transparency it drops
        picture = picture.convert("L" if channels == 1 else "RGB")
        square = center_crop(resize(picture, image_size, InterpolationMode.BICUBIC), [image_size, image_size])
    return pil_to_tensor(square)


def _size(path: Path) -> tuple[int, int] | str:
    try:
        with Image.open(path) as file:
            _check_depth(file)
            if not _last_bytes(path).rstrip(b"\0").endswith(ENDS.get(file.format or "", b"")):
                file.load()  # cut off, or something behind it that does no harm
            return file.size
    except Exception as error:
        return _reason(error)


def _last_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 16, 0))
        return file.read()


def _check_depth(file: Image.Image) -> None:
    if file.mode[0] in "IF":
        raise ValueError(f"pixels of mode {file.mode} are not 8-bit")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no picture, or damaged"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
