"""Any folder of pictures as a training set of square images."""

from functools import cached_property
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from diffusion_lightning.data.arguments import check_at_least
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.loader import useful_workers
from diffusion_lightning.data.names import Paths
from diffusion_lightning.data.picture_folder import PictureFolder, look_into
from diffusion_lightning.data.pictures import PictureFiles, fits_in_memory, pictures_digest
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages


class ImageFolder(ImageDataModule):
    """A folder of pictures, searched recursively, as square images of one size.

    Pictures are all files that Pillow reads as such (png, jpg, jfif, webp, avif, jp2, gif, tif, bmp, ppm, …); no folder
    is searched twice, whatever links lead to it. At the start of a training one line says what was found.

    If `root` holds a folder ``train`` (or ``training``) and one for holding out, these are the training and the
    held-out pictures, and nothing else in `root` is read. For holding out is ``val``, ``valid``, ``validation``,
    ``dev``, ``eval`` or ``evaluation``, and ``test`` or ``testing`` where there is none of those; upper and lower case
    are the same. Otherwise `val_fraction` of all pictures is held out: those whose names have the smallest hashes, the
    same in every run. Of several processes the first one alone searches the folder, and tells the others.

    If every picture lies in a subfolder (of the folder ``train``, if all of them are in it or in the held-out one), the
    first-level subfolders, sorted, are the classes, named as they are; otherwise there is one class, 0.

    With `condition.columns` the metadata of the pictures are read (:mod:`~diffusion_lightning.data.metadata`), from
    ``metadata.csv`` or ``metadata.jsonl`` in `root`, or in the folders of the training and the held-out pictures. Its
    columns of numbers are the vector of each picture; one of words makes the classes, in place of the folders.

    Args:
        root: the folder of pictures.
        image_size: height and width of the images: the shorter side is resized to it, then the centre cropped.
        channels: 3 for colour, 1 for gray.
        val_fraction: share of the pictures that is held out, in (0, 1); at least one picture is.
        flip: mirror training images at random.
        in_memory: decode everything once into memory, or each batch from disk when it is needed; by default in memory
            if that takes less than 2 GiB.
        num_workers: processes that read batches beside each training process; by default none if the pictures are in
            memory, else as many as this process has CPUs for, at most 8
            (:func:`~diffusion_lightning.data.loader.useful_workers`).
        kwargs: those of `ImageDataModule`.

    Raises:
        ValueError: if an argument is out of its range, a single picture is to be split, or two folders could be that
            of the training, or of the held-out pictures; if the metadata are not such as they should be.
        FileNotFoundError: at the first use, if `root` is not a folder or has no pictures, or no metadata where columns
            are asked for, or those of pictures that are not there.
        OSError: naming all pictures that cannot be read, before a run begins; of those that stay on disk, the ones that
            are damaged in their midst only when their batch is read.
    """

    fid_feature = "inception"
    has_metadata = True
    _is_shared = False

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        channels: Literal[1, 3] = 3,
        val_fraction: float = 0.05,
        flip: bool = False,
        in_memory: bool | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        # whether there are to be any by default, the folder tells, which nobody looks into yet
        super().__init__(num_workers=num_workers or 0, **kwargs)
        self._num_workers = num_workers
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
        """Number of first-level subfolders with pictures, or of words in the metadata; 1 if there is no class.

        Looks at names and metadata only. With `condition.clusters`, of groups.
        """
        classes = max(len(self._folder.class_names), 1)
        if self.condition is None or self.condition.clusters is None:
            return classes
        return self.condition.clusters * (classes if self.condition.within_classes else 1)

    @property
    def class_names(self) -> list[str] | None:  # type: ignore[override]
        """Those subfolders' names, or those words; None if there is no class."""
        return self._folder.class_names or None

    def _count_groups(self, clusters: int) -> None:
        """Nothing yet: what is in the folder is looked at when it is asked for."""

    @property
    def condition_dim(self) -> int | None:  # type: ignore[override]
        """How many columns of the metadata are numbers; None if there is none."""
        metadata = self._folder.metadata
        return len(metadata.numbers) or None if metadata is not None else None

    @property
    def vector_names(self) -> list[str] | None:  # type: ignore[override]
        """Those columns; None if there is none."""
        metadata = self._folder.metadata
        return metadata.numbers or None if metadata is not None else None

    @property
    def num_workers(self) -> int:
        """Processes that read batches beside this one."""
        if self._num_workers is not None:
            return self._num_workers
        return 0 if self._is_in_memory else useful_workers(self._processes)

    @num_workers.setter
    def num_workers(self, number: int | None) -> None:
        self._num_workers = number

    def prepare_data(self) -> None:
        """Look for the pictures, say what there is, and whether they are pictures: all before a run begins.

        Lightning calls it in one process per machine; the first of them does it.
        """
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        _ = self._folder
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info(self.found())
        if not self._is_in_memory:  # else they are read as a whole
            self._files().check()

    def setup(self, stage: str | None = None) -> None:
        """Make the examples, once, from what the first of all processes has found."""
        if self.trainer is not None and self.trainer.world_size > 1 and not self._is_shared:
            self._share(self.trainer)
        super().setup(stage)

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training pictures and the held-out ones, each sorted by name."""
        train, held_out = slice(self._folder.train), slice(self._folder.train, None)
        if not self._is_in_memory:
            return self._files(train), self._files(held_out)
        whole = self._files().load()  # both at once, so that all that cannot be read are told of together
        return self._part_of(whole, train), self._part_of(whole, held_out)

    def found(self) -> str:
        """One line: how many pictures there are to train on and held out, the classes with theirs, what is left out.

        Of pictures that stay on disk it also tells how many workers read them.
        """
        line = f"ImageFolder {str(self.root)!r}: {self._folder.summary()}"
        if self._is_in_memory:
            return line
        workers = self.num_workers or "no"
        each = " for each process" if self._processes > 1 else ""
        return f"{line}; read from the disk by {workers} worker{'s' * (workers != 1)}{each}"

    def _reference_digest(self) -> str:
        folder = self._folder
        return pictures_digest(folder.path, folder.names[: folder.train], self.shape)

    @property
    def _is_in_memory(self) -> bool:
        if self.in_memory is not None:
            return self.in_memory
        return fits_in_memory(len(self._folder.names), self.shape)

    @property
    def _processes(self) -> int:
        """Those of the training on this machine."""
        return self.trainer.world_size // self.trainer.num_nodes if self.trainer is not None else 1

    def _files(self, part: slice = slice(None)) -> PictureFiles:
        folder = self._folder
        paths = Paths(folder.path, folder.names[part])
        vectors = folder.metadata.vectors if folder.metadata is not None else None
        own = vectors[part] if vectors is not None else None
        return PictureFiles(paths, folder.labels[part], self.image_size, self.channels, own)

    @staticmethod
    def _part_of(whole: TensorImages, part: slice) -> TensorImages:
        vectors = whole.vectors[part] if whole.vectors is not None else None
        return TensorImages(whole.images[part], whole.labels[part], vectors=vectors)

    @cached_property
    def _folder(self) -> PictureFolder:
        columns = self.condition.columns if self.condition is not None else None
        return look_into(str(self.root), self.val_fraction, columns)

    def _share(self, trainer: Trainer) -> None:
        """Take what the first process has found; every process must enter it.

        What a process has found by itself may differ: on another machine, or while files come and go.
        """
        found: Any = trainer.strategy.broadcast(self._folder if trainer.is_global_zero else None)
        if not trainer.is_global_zero:
            self._folder = found
            self._images = self._fingerprint = None
            if trainer.local_rank == 0 and not self._is_in_memory:
                self._files().check()  # this machine's disk may be another one
        self._is_shared = True
