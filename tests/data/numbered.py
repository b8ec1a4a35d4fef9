"""Images that say which they are, and a module that keeps what it is given: what the tests of the data share."""

import lightning.pytorch as pl
import torch
from lightning_utilities import apply_to_collection
from torch import nn

from diffusion_lightning import ImageDataModule, TensorImages
from diffusion_lightning.data.order import BatchOrder


class Numbered(ImageDataModule):
    """Random images whose label is their number, so that a batch tells which images it holds and whether mirrored."""

    shape = (3, 4, 5)
    num_classes = 100
    fid_feature = "inception"

    def __init__(self, flip=False, train=50, held_out=11, **kwargs):
        super().__init__(**kwargs)
        self.flip = flip
        self.sizes = train, held_out
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (train + held_out, *self.shape), dtype=torch.uint8, generator=generator)

    def load_images(self):
        train, held_out = self.sizes
        labels = torch.arange(train + held_out)
        return TensorImages(self.pixels[:train], labels[:train]), TensorImages(self.pixels[train:], labels[train:])


class Recorder(pl.LightningModule):
    """Keeps every batch it is given, by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.train_batches, self.val_batches, self.predict_batches = {}, {}, []

    def training_step(self, batch, batch_idx):
        self.train_batches.setdefault(self.current_epoch, []).append(
            apply_to_collection(batch, torch.Tensor, torch.clone)
        )
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.val_batches.setdefault(self.current_epoch, []).append(
            apply_to_collection(batch, torch.Tensor, torch.clone)
        )

    def predict_step(self, batch, batch_idx):
        self.predict_batches.append(batch.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**kwargs):
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**(settings | kwargs))


def fit(data, ckpt_path=None, **kwargs):
    module = Recorder()
    trainer(**kwargs).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def numbers(batches):
    return [labels.tolist() for _, labels in batches]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for epoch in left:
        for a, b in zip(left[epoch], right[epoch], strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=0)


def order(size, batch_size, world=1, rank=0, epoch=0, seed=0, training=True):
    result = BatchOrder(
        size, batch_size, shuffle=training, drop_last=training, seed=seed, num_replicas=world, rank=rank
    )
    result.set_epoch(epoch)
    return result
