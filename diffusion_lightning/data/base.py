"""Examples as whole batches, in an order that is a pure function of (seed, epoch); and images, as uint8.

A set of N examples is a map-style dataset whose item is a whole batch: `dataset[indices]` is `(x (B, …), int64 (B,))`.
`BatchOrder` is the sampler that yields those lists of indices, `BatchLoader` the loader that runs it, and
`BatchDataModule` joins them. `ImageDataModule` is one for images, where x is uint8 (B, C, H, W): normalization and
flips happen on the training device, one batch at a time, in `ImageDataModule.on_after_batch_transfer`.
"""

import atexit
import hashlib
import math
import os
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler
from torchvision.transforms.v2.functional import resize

from diffusion_lightning.randomness import Stream, derive_seed, draw_some, global_seed

BatchSet: TypeAlias = Dataset[tuple[Tensor, ...]]
"""A sized map-style dataset: `dataset[indices]` is `(x (B, …), int64 (B,))`."""

ImageSet: TypeAlias = Dataset[tuple[Tensor, Tensor]]
"""A sized map-style dataset: `dataset[indices]` is `(uint8 (B, C, H, W), int64 (B,))`."""


def check_at_least(least: int, **arguments: int) -> None:
    """Raise a ValueError that names the first of the arguments that is not a whole number from `least` on."""
    for name, value in arguments.items():
        if not (value >= least and value % 1 == 0):
            raise ValueError(f"{name} must be at least {least}, got {value}")


def normalize(images: Tensor) -> Tensor:
    """uint8 images of any shape to float32 in [-1, 1]: x/127.5 − 1, so that 0 is exactly −1 and 255 exactly 1."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def random_flip(images: Tensor, seed: int, rank: int = 0, world_size: int = 1) -> Tensor:
    """Mirror each image left to right with probability ½, by a generator on the images' device.

    Args:
        images: (B, C, H, W), any dtype; every `world_size`-th of a larger batch, beginning with the `rank`-th.
        seed: decides which images of that batch are mirrored; nothing else does.
        rank: of the process that has these images.
        world_size: number of processes.

    Returns:
        A new tensor like `images`.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    drawn = torch.rand(len(images) * world_size, generator=generator, device=images.device)
    mirrored = drawn[rank::world_size] < 0.5
    # Choosing whole images from both versions copies memory; `torch.where` over the pixels is several times slower.
    chosen = torch.arange(len(images), device=images.device) + mirrored * len(images)
    return torch.cat((images, images.flip(-1))).index_select(0, chosen)


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images held in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        image_size: height and width that batches are resized to (bilinear, antialiased), if given.
    """

    def __init__(self, images: Tensor, labels: Tensor, image_size: int | None = None) -> None:
        self.images = images
        self.labels = labels
        self.image_size = image_size

    @property
    def resizes(self) -> bool:
        """Whether batches are of another size than the images held."""
        return self.image_size is not None and self.images.shape[-2:] != (self.image_size, self.image_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The batch of these images: uint8 (B, C, H, W) and int64 (B,), where the images are."""
        # to a GPU without waiting for what it is still computing
        index = torch.as_tensor(indices).to(self.images.device, non_blocking=self.images.is_cuda)
        images = self.images.index_select(0, index)
        if self.resizes:
            # batch by batch: whole sets of larger images would fill the memory
            images = resize(images, [self.image_size, self.image_size], antialias=True)
        return images, self.labels.index_select(0, index)

    def to(self, device: torch.device) -> "TensorImages":
        """The same set with its images and labels on a device."""
        return TensorImages(self.images.to(device), self.labels.to(device), self.image_size)


class _Indices(Dataset[Tensor]):
    """The numbers 0 … N−1 as a dataset of whole batches, int64 (B,)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.as_tensor(indices)


class BatchOrder(DistributedSampler[list[int]]):
    """The batches of one rank for one epoch, as lists of indices: a pure function of (seed, epoch, rank).

    Rank r of W takes every W-th index of the epoch's order, beginning with the r-th; no index is ever repeated to make
    ranks equal. It is a `DistributedSampler` because Lightning leaves those alone and calls their `set_epoch`.

    Attributes:
        epoch: the epoch whose order is yielded, set by `set_epoch`.
        start_batch: the first batch to yield, 0 unless an epoch is to be continued in the middle. It does not change
            `len()`, and the next new epoch sets it back to 0.

    Args:
        size: number of examples N over all ranks.
        batch_size: examples per batch and rank.
        shuffle: draw a new order for every epoch, or, ``"once"``, one for all epochs, instead of 0 … N−1.
        drop_last: leave out what does not fill a batch on every rank, so that all ranks have equally many batches of
            equal size, as DDP training needs. Where a rank's share is smaller than one batch, that share is the batch.
        seed: of the order.
        num_replicas: number of ranks W.
        rank: this rank r.

    Raises:
        ValueError: with `drop_last`, if there are fewer examples than ranks.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool | Literal["once"],
        drop_last: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(range(size), num_replicas, rank, bool(shuffle), seed, drop_last)  # type: ignore[arg-type]
        if drop_last and size < num_replicas:
            raise ValueError(f"{size} training images cannot feed {num_replicas} processes: each needs at least one")
        self.size = size
        self.once = shuffle == "once"
        self.batch_size = batch_size
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a change of epoch begins at its first batch."""
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches of a whole epoch on this rank."""
        if self.drop_last:
            return max(self.size // self.num_replicas // self.batch_size, 1)
        return math.ceil(len(range(self.rank, self.size, self.num_replicas)) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        if self.once:
            order = draw_some(self.size, self.size, self.seed)
        elif self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch, Stream.ORDER))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        share = order[self.rank :: self.num_replicas].tolist()
        if self.drop_last:
            share = share[: self.size // self.num_replicas]
        for batch in range(self.start_batch, len(self)):
            yield share[batch * self.batch_size : (batch + 1) * self.batch_size]


class _FixedBatchOrder(BatchOrder, SequentialSampler):  # type: ignore[misc]
    """A `BatchOrder` that Lightning keeps under `Trainer(overfit_batches=…)`, where it replaces all but these two."""


class BatchLoader(DataLoader):
    """A `DataLoader` that asks its sampler for nothing until the first batch is wanted.

    When a run is resumed, Lightning makes the iterator before it has told the sampler which epoch it is; workers that
    prefetch at once would then load the wrong one.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        if self.num_workers > 0:
            _iterators.add(iterator)
            _workers[:] = [worker for worker in _workers if worker.is_alive()] + iterator._workers  # type: ignore[attr-defined]
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Nothing, but its being here tells Lightning that an epoch can be continued in the middle.

        How far an epoch is, the training loop knows, not the loader, which reads ahead; a `ScoreModule` that is resumed
        sets the order's `start_batch`.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; see `state_dict`."""


def _leave_signals(worker: int) -> None:
    """A terminal's Ctrl-C and a job's SIGTERM reach the workers too, which the training process needs to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of loaders that have workers."""

_workers: list[Any] = []
"""All of them, as processes."""


@atexit.register
def _end_workers() -> None:
    """Where an error keeps loaders alive to the end of the process, Python would send their workers SIGTERM, and wait.

    Some outlive even the orderly end of an iterator that a traceback held.
    """
    for iterator in list(_iterators):
        iterator._shutdown_workers()
    for worker in _workers:
        if worker._parent_pid == os.getpid() and worker.is_alive():
            worker.kill()


class BatchDataModule(LightningDataModule, ABC):
    """Training and held-out examples, read as whole batches; the held-out ones serve validation and test alike.

    Loaders yield `(x (B, …), int64 (B,))`. A subclass gives `sets`, `shape` and `num_classes`.

    Attributes:
        shape: of one example, known before `setup`.
        num_classes: labels are in [0, num_classes), known before `setup`.
        class_names: of each label what it stands for, known before `setup`; None where they have no names.

    Args:
        batch_size: examples per batch and process.
        num_workers: processes that read batches beside the training process; 0 is fastest for examples in memory.
        num_predict: how many samples `predict` draws, over all processes.
        seed: decides all that the data draw, such as the order of the examples and the flips of images; that of
            ``seed_everything`` if left out.

    Raises:
        ValueError: if an argument is out of its range.
    """

    shape: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None = None

    def __init__(
        self, batch_size: int = 128, num_workers: int = 0, num_predict: int = 64, seed: int | None = None
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        check_at_least(1, num_predict=num_predict)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_predict = num_predict
        self.seed = seed

    @abstractmethod
    def sets(self) -> tuple[BatchSet, BatchSet]:
        """The training examples and the held-out ones, made at the first call and then kept."""

    def setup(self, stage: str | None = None) -> None:
        """Make the examples, once."""
        self.sets()

    def class_counts(self) -> list[int]:
        """How many training examples have each label from 0 on.

        They are counted in the set's ``labels``, int64 (N,); a set without such an attribute is read once.

        Raises:
            ValueError: if the labels are no classes: not whole numbers from 0 on.
        """
        examples = self.sets()[0]
        labels = getattr(examples, "labels", None)
        if labels is None:
            order = BatchOrder(len(examples), 500, shuffle=False, drop_last=False)  # type: ignore[arg-type]
            labels = torch.cat([examples[batch][1] for batch in order])  # type: ignore[index]
        if labels.is_floating_point() or labels.ndim != 1 or labels.min() < 0:
            raise ValueError(f"{type(self).__name__}: its labels are no classes: must be whole numbers (N,) from 0 on")
        return torch.bincount(labels, minlength=self.num_classes).tolist()

    def train_dataloader(self) -> DataLoader:
        """This rank's share in a new order each epoch; equally many batches on every rank."""
        return self._loader(self.sets()[0], shuffle=not self._overfitting, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out examples, each exactly once over all ranks, in an order that the seed draws once for all epochs.

        So the first batches, over all ranks, are examples drawn at random, even if the set itself is sorted.
        """
        return self._loader(self.sets()[1], shuffle="once")

    def test_dataloader(self) -> DataLoader:
        """The same examples as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """The indices 0 … num_predict−1 as int64 (B,), each exactly once over all ranks."""
        # Fewer samples than ranks leave a rank idle, which is no reason for Lightning to stop.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        return self._loader(_Indices(self.num_predict))

    @property
    def _seed(self) -> int:
        return global_seed() if self.seed is None else self.seed

    @property
    def _overfitting(self) -> bool:
        return self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]

    def _loader(self, dataset: Dataset, shuffle: bool | Literal["once"] = False, drop_last: bool = False) -> DataLoader:
        trainer = self.trainer
        order = (_FixedBatchOrder if self._overfitting else BatchOrder)(
            len(dataset),  # type: ignore[arg-type]
            self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=self._seed,
            num_replicas=trainer.world_size if trainer is not None else 1,
            rank=trainer.global_rank if trainer is not None else 0,
        )
        return BatchLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals,
            pin_memory=self._pins_memory(dataset),
            # Its own generator, or every epoch would take one draw from the global one.
            generator=torch.Generator(),
        )

    def _pins_memory(self, dataset: Dataset) -> bool:
        """Whether batches wait for their way to a GPU in memory that it can read by itself."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


class ImageDataModule(BatchDataModule):
    """Training and held-out images; the held-out ones serve validation and test alike.

    Loaders yield `(uint8 (B, C, H, W), int64 (B,))`; on the training device `on_after_batch_transfer` makes the images
    float32 in [-1, 1] and, in training, mirrors half of them at random where `flip` is set. A subclass gives
    `load_images`, `shape`, `num_classes` and `fid_feature`.

    Images in memory may be kept on the training device: a batch is then picked out there, and only its indices travel.
    The order and the batches are the same.

    Attributes:
        shape: (C, H, W), known before `setup`.
        fid_feature: which features suit these images for FID.
        flip: whether training images are mirrored at random.

    Args:
        on_device: keep the images on the training device. `"auto"`: on a CUDA device, a set that takes less than a
            quarter of its free memory, if there are no workers and its images are not resized batch by batch.
        kwargs: those of `BatchDataModule`.

    Raises:
        ValueError: if an argument is out of its range; with `on_device=True`, if there are workers, or when a loader is
            made, the images are not in memory.
    """

    shape: tuple[int, int, int]
    fid_feature: ClassVar[Literal["mnist", "inception"]]
    flip: bool = False
    _images: tuple[ImageSet, ImageSet] | None = None
    _fingerprint: str | None = None

    def __init__(self, *, on_device: bool | Literal["auto"] = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if on_device not in (True, False, "auto"):
            raise ValueError(f"on_device must be true, false or 'auto', got {on_device!r}")
        if on_device is True and self.num_workers > 0:
            raise ValueError(f"on_device=True needs num_workers=0, got {self.num_workers}: workers read from memory")
        self.on_device = on_device

    @abstractmethod
    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the held-out ones."""

    def sets(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the held-out ones, loaded at the first call."""
        if self._images is None:
            self._images = self.load_images()
        return self._images

    @property
    def train_images(self) -> ImageSet:
        """The training images, loaded at the first use."""
        return self.sets()[0]

    @property
    def held_out_images(self) -> ImageSet:
        """The images for validation and test, loaded at the first use."""
        return self.sets()[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """uint8 images to float32 in [-1, 1], in training with random flips; any other batch passes unchanged.

        Which images are flipped is a function of (seed, epoch, batch index) and of their place in the batch of all
        processes alone.

        Args:
            batch: `(images, …)` on the training device, images uint8 (B, C, H, W).
            dataloader_idx: not used.

        Returns:
            `(images, …)` with images float32 (B, C, H, W).
        """
        if not isinstance(batch, tuple | list):
            return batch
        images, *rest = batch
        if images.dtype != torch.uint8:
            return batch
        if self.flip and self.trainer is not None and self.trainer.training:
            fit = self.trainer.fit_loop
            # The hook runs before Lightning counts the batch, hence + 1; `processed` is the epoch the order was given.
            epoch, index = fit.epoch_progress.current.processed, fit.epoch_loop.batch_idx + 1  # type: ignore[attr-defined]
            # the zero keeps the flips of a single process what they have always been
            seed = derive_seed(self._seed, 0, epoch, index, Stream.FLIP)
            images = random_flip(images, seed, self.trainer.global_rank, self.trainer.world_size)
        return normalize(images), *rest

    def _loader(self, dataset: Dataset, shuffle: bool | Literal["once"] = False, drop_last: bool = False) -> DataLoader:
        return super()._loader(self._placed(dataset), shuffle, drop_last)

    def _placed(self, dataset: Dataset) -> Dataset:
        """The set on the training device, if it is to be there."""
        if self.trainer is None or self.on_device is False or isinstance(dataset, _Indices):
            return dataset
        device = self.trainer.strategy.root_device
        if self.on_device is True:
            if not isinstance(dataset, TensorImages):
                raise ValueError("on_device=True: the images are not in memory, but read batch by batch")
            return dataset.to(device)
        if device.type != "cuda" or self.num_workers > 0 or not isinstance(dataset, TensorImages) or dataset.resizes:
            return dataset
        free = torch.cuda.mem_get_info(device)[0]
        return dataset.to(device) if dataset.images.nbytes < free / 4 else dataset

    def _pins_memory(self, dataset: Dataset) -> bool:
        # what is on the GPU already cannot be pinned
        on_cpu = not isinstance(dataset, TensorImages) or dataset.images.device.type == "cpu"
        return on_cpu and super()._pins_memory(dataset)

    def fid_reference(self) -> Iterator[Tensor]:
        """All training images as they are, unaugmented: uint8 (B, C, H, W) in batches of 500."""
        images = self.train_images
        order = BatchOrder(len(images), 500, shuffle=False, drop_last=False)  # type: ignore[arg-type]
        for batch, _ in BatchLoader(images, batch_size=None, sampler=order, num_workers=self.num_workers):
            yield batch

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the images of `fid_reference`."""
        if self._fingerprint is None:
            self._fingerprint = self._reference_digest()[:16]
        return self._fingerprint

    def _reference_digest(self) -> str:
        images = self.train_images.images  # type: ignore[attr-defined]
        as_served = self.train_images[[0]][0].shape[1:]
        digest = hashlib.sha256(repr((len(images), *as_served)).encode())
        digest.update(images.numpy())
        return digest.hexdigest()


class TorchvisionImages(ImageDataModule):
    """A set that torchvision downloads and reads; its own test set is the held-out one.

    A root that already holds the set is only read: nothing is downloaded and nothing written.

    Args:
        root: folder that holds the set in torchvision's layout, or where it is to be downloaded.
        image_size: height and width that the images are resized to; their own if left out.
        kwargs: those of `ImageDataModule`.

    Raises:
        ValueError: if `image_size` is below 1.
        OSError: from `prepare_data` and `setup`, if the set is not there and cannot be downloaded, or is damaged.
    """

    source: ClassVar[type]
    layout: ClassVar[str]

    def __init__(self, root: str = "data", image_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if image_size is not None:
            check_at_least(1, image_size=image_size)
            self.shape = (self.shape[0], image_size, image_size)
        self.root = root
        self.image_size = image_size

    def prepare_data(self) -> None:
        """Download the set unless `root` holds it. Lightning calls this in one process per machine."""
        self._read(train=True, download=True)

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training set and the test set, in their published order."""
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool, download: bool = False) -> TensorImages:
        try:
            source = self.source(os.path.expanduser(self.root), train=train, download=download)
        except Exception as error:  # torchvision raises whatever the network, the disk or the unpacking raised
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(
                f"data.root={str(self.root)!r}: {self.source.__name__} can be neither read from nor downloaded to this "
                f"folder ({reason}); give a data.root that holds {self.layout}, or a writable one and a network"
            ) from error
        images = torch.as_tensor(source.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, torch.as_tensor(source.targets, dtype=torch.int64), self.image_size)
