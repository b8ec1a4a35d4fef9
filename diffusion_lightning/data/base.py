"""The data modules that all others are made of: examples as whole batches, and images, as uint8 until they are needed.

`BatchDataModule` joins two sets of examples, an order of their batches and its loader. `ImageDataModule` is one for
images, uint8 (B, C, H, W): normalization and flips happen on the training device, one batch at a time, in
`ImageDataModule.on_after_batch_transfer`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lightning.conditions import Condition
from diffusion_lightning.data.arguments import check_at_least
from diffusion_lightning.data.clusters import Groups, cluster
from diffusion_lightning.data.condition import ConditionSource, downsampled
from diffusion_lightning.data.examples import TellsOfExamples
from diffusion_lightning.data.loader import BatchLoader, image_batches, leave_signals
from diffusion_lightning.data.order import BatchOrder, FixedBatchOrder, Indices
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages, normalize, random_flip
from diffusion_lightning.randomness import Stream, derive_seed, global_seed


class BatchDataModule(TellsOfExamples, LightningDataModule, ABC):
    """Training and held-out examples, read as whole batches; the held-out ones serve validation and test alike.

    Loaders yield `(x (B, …), condition)`: labels, int64 (B,), or what else `conditions` names. A subclass gives `sets`,
    and of the attributes of `TellsOfExamples` `shape`, `num_classes` and those that its conditions have.

    Args:
        batch_size: examples per batch and process.
        num_workers: processes that read batches beside the training process; 0 is fastest for examples in memory.
        num_predict: how many samples `predict` draws, over all processes.
        seed: decides all that the data draw, such as the order of the examples and the flips of images; that of
            ``seed_everything`` if left out.

    Raises:
        ValueError: if an argument is out of its range.
    """

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

    def setup(self, stage: str | None = None) -> None:
        """Make the examples, once."""
        self.sets()

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
        return self._loader(Indices(self.num_predict))

    @property
    def _seed(self) -> int:
        return global_seed() if self.seed is None else self.seed

    @property
    def _overfitting(self) -> bool:
        return self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]

    def _loader(self, dataset: Dataset, shuffle: bool | Literal["once"] = False, drop_last: bool = False) -> DataLoader:
        trainer = self.trainer
        order = (FixedBatchOrder if self._overfitting else BatchOrder)(
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
            worker_init_fn=leave_signals,
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
    float32 in [-1, 1] and, in training, mirrors half of them at random where `flip` is set. Where there are more
    conditions than labels, a batch comes out of it with all of them by name: ``labels`` if there are classes,
    ``vector``, ``picture``. A subclass gives `load_images`, `shape` and `num_classes`.

    Images in memory may be kept on the training device: a batch is then picked out there, and only its indices travel.
    The order and the batches are the same.

    Attributes:
        shape: (C, H, W), known before `setup`.
        fid_feature: the features that suit these images for FID, by their name in `metrics.features`; None leaves the
            choice to the images' shape.
        flip: whether training images are mirrored at random.
        has_metadata: whether there may be columns that say more of each image.

    Args:
        on_device: keep the images on the training device. `"auto"`: on a CUDA device, a set that takes less than a
            quarter of its free memory, if there are no workers and its images are not resized batch by batch.
        condition: what the network is to be told of an image besides its label: the image itself made small, or columns
            of its metadata (`ImageFolder`); or instead of it: which of the groups that the images fall into it is of.
            Nothing if left out.
        kwargs: those of `BatchDataModule`.

    Raises:
        ValueError: if an argument is out of its range; for columns of images without metadata; before a run begins, if
            `condition.downsample` does not divide the images' sides; with `on_device=True`, if there are workers, or
            when a loader is made, the images are not in memory.
    """

    shape: tuple[int, int, int]
    fid_feature: ClassVar[str | None] = None
    flip: bool = False
    has_metadata: ClassVar[bool] = False
    _images: tuple[ImageSet, ImageSet] | None = None
    _fingerprint: str | None = None

    def __init__(
        self, *, on_device: bool | Literal["auto"] = "auto", condition: ConditionSource | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if on_device not in (True, False, "auto"):
            raise ValueError(f"on_device must be true, false or 'auto', got {on_device!r}")
        if on_device is True and self.num_workers > 0:
            raise ValueError(f"on_device=True needs num_workers=0, got {self.num_workers}: workers read from memory")
        if condition is not None and condition.columns is not None and not self.has_metadata:
            raise ValueError(
                f"data.condition.columns={condition.columns}: {type(self).__name__} has no metadata; give a data set "
                "that has (ImageFolder), or data.condition.downsample"
            )
        self.on_device = on_device
        self.condition = condition
        if condition is not None and condition.clusters is not None:
            self._count_groups(condition.clusters)

    @property
    def condition_channels(self) -> int | None:  # type: ignore[override]
        """Those of the image, if its condition is the image made small.

        Raises:
            ValueError: if it cannot be made small by that factor.
        """
        if self.condition is None or self.condition.downsample is None:
            return None
        self.condition.check_sides(self.shape)
        return self.shape[0]

    @abstractmethod
    def load_images(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the held-out ones."""

    def sets(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the held-out ones, loaded at the first call."""
        if self._images is None:
            _ = self.condition_channels  # what is wrong with it is said before anything is read
            self._images = self._in_groups(*self.load_images())
        return self._images

    def _count_groups(self, clusters: int) -> None:
        self.num_classes = clusters * (self.num_classes if self.condition.within_classes else 1)  # type: ignore[union-attr]

    def _in_groups(self, training: ImageSet, held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Both sets with the groups of `condition.clusters` for labels, if there are any."""
        if self.condition is None or (clusters := self.condition.clusters) is None:
            return training, held_out
        if not (isinstance(training, TensorImages) and isinstance(held_out, TensorImages)):
            raise ValueError(
                f"data.condition.clusters={clusters}: {type(self).__name__} reads its images batch by batch, but "
                "groups are found of images in memory: add --data.in_memory true, or leave clusters out"
            )
        classes = self.num_classes // clusters
        own = [images.labels if classes > 1 else torch.zeros_like(images.labels) for images in (training, held_out)]
        found = cluster(training.images, own[0], clusters, classes)
        labels = [found.of(images.images, own) for images, own in zip((training, held_out), own, strict=True)]
        self.groups = Groups(torch.bincount(labels[0], minlength=self.num_classes).tolist(), classes)
        return training.labelled(labels[0]), held_out.labelled(labels[1])

    @property
    def train_images(self) -> ImageSet:
        """The training images, loaded at the first use."""
        return self.sets()[0]

    @property
    def held_out_images(self) -> ImageSet:
        """The images for validation and test, loaded at the first use."""
        return self.sets()[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """uint8 images to float32 in [-1, 1], in training with random flips, and their conditions by name if they have
        others than labels; what is no such pair passes unchanged.

        Which images are flipped is a function of (seed, epoch, batch index) and of their place in the batch of all
        processes alone. The small picture of a flipped image is flipped, too.

        Args:
            batch: `(images, condition)` on the training device, images uint8 (B, C, H, W).
            dataloader_idx: not used.

        Returns:
            `(images, condition)` with images float32 (B, C, H, W).
        """
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor)):
            return batch
        images, condition = batch
        if images.dtype == torch.uint8 and self.flip and self.trainer is not None and self.trainer.training:
            fit = self.trainer.fit_loop
            # The hook runs before Lightning counts the batch, hence + 1; `processed` is the epoch the order was given.
            epoch, index = fit.epoch_progress.current.processed, fit.epoch_loop.batch_idx + 1  # type: ignore[attr-defined]
            # the zero keeps the flips of a single process what they have always been
            seed = derive_seed(self._seed, 0, epoch, index, Stream.FLIP)
            images = random_flip(images, seed, self.trainer.global_rank, self.trainer.world_size)
        return self._ready(images, condition)

    def _ready(self, x: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
        x = normalize(x) if x.dtype == torch.uint8 else x
        factor = self.condition.downsample if self.condition is not None else None
        if factor is None and not isinstance(condition, Mapping):
            return x, condition
        picture = {"picture": downsampled(x, factor)} if factor is not None else {}
        return x, {**self._named(condition), **picture}

    def _loader(self, dataset: Dataset, shuffle: bool | Literal["once"] = False, drop_last: bool = False) -> DataLoader:
        return super()._loader(self._placed(dataset), shuffle, drop_last)

    def _placed(self, dataset: Dataset) -> Dataset:
        """The set on the training device, if it is to be there."""
        if self.trainer is None or self.on_device is False or isinstance(dataset, Indices):
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

    def fid_reference(self, parts: Sequence[Sequence[int]] | None = None) -> Iterator[Tensor]:
        """All training images as they are, unaugmented: uint8 (B, C, H, W) in batches of 500.

        Of parts, each given by its indices, those of each, one after the other, a last batch of less than 500 at the
        end of each.
        """
        return image_batches(self.train_images, workers=self.num_workers, parts=parts)

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
