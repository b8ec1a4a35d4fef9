"""How many images per second reach the network, beside torchvision's usual per-sample pipeline.

Both paths do the same work on the same images: shuffle, make batches, mirror half of the images at random, scale to
float32 in [-1, 1]. Ours takes whole uint8 batches from memory; the other is a Dataset of PIL images with
`Compose([RandomHorizontalFlip, ToTensor, Normalize])` behind persistent workers, warmed up. The two alternate in one
process, so that whatever else the machine does burdens both; the median of the ratios is the result. Ours runs on one
thread unless told otherwise, which is less than the other path gets.

    python benchmarks/data_path.py --images cifar --seconds 2 --repeats 5
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor

from diffusion_lightning.data import EmbeddedMNIST
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import ImageSet, TensorImages, normalize, random_flip


class CifarLike(ImageDataModule):
    """50,000 images of noise, of the size of CIFAR-10."""

    shape = (3, 32, 32)
    num_classes = 10
    fid_feature = "inception"

    def load_images(self) -> tuple[ImageSet, ImageSet]:
        images = torch.randint(0, 256, (50_000, *self.shape), dtype=torch.uint8)
        images = TensorImages(images, torch.zeros(len(images), dtype=torch.int64))
        return images, images


class PerSample(Dataset):
    """The usual dataset: item i is one PIL image, transformed."""

    def __init__(self, images: TensorImages) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = images.labels.tolist()
        channels = images.images.shape[1]
        self.transform = Compose([RandomHorizontalFlip(), ToTensor(), Normalize((0.5,) * channels, (0.5,) * channels)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def whole_batches(data: ImageDataModule) -> Iterator[Tensor]:
    """Our path, epoch after epoch: float32 (B, C, H, W)."""
    loader = data.train_dataloader()
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        for index, (images, _) in enumerate(loader):
            yield normalize(random_flip(images, seed=epoch * len(loader) + index))
        epoch += 1


def per_sample(data: ImageDataModule, workers: int) -> Iterator[Tensor]:
    """torchvision's path, epoch after epoch: float32 (B, C, H, W)."""
    loader = DataLoader(
        PerSample(data.train_images),
        data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        for images, _ in loader:
            yield images


def rate(batches: Iterator[Tensor], seconds: float) -> float:
    """Images per second over at least `seconds`."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches))
    return count / elapsed


def main() -> None:
    sets: dict[str, Callable[..., ImageDataModule]] = {"mnist": EmbeddedMNIST, "cifar": CifarLike}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", choices=sets, default="cifar", help="digits of the package, or noise 32×32×3")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the per-sample path")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each path")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    data = sets[options.images](batch_size=options.batch_size)
    ours, theirs = whole_batches(data), per_sample(data, options.workers)
    for batches in (ours, theirs):
        rate(batches, options.seconds / 2)

    ratios = []
    for _ in range(options.repeats):
        fast, slow = rate(ours, options.seconds), rate(theirs, options.seconds)
        ratios.append(fast / slow)
        print(f"whole batches {fast:10,.0f} images/s   per sample {slow:8,.0f} images/s   ×{ratios[-1]:.1f}")
    print(f"{options.images}, batch {options.batch_size}: median ratio ×{statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
