import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from diffusion_lightning.data import CIFAR10, MNIST, EmbeddedMNIST, Points
from diffusion_lightning.data.base import BatchLoader, BatchOrder, ImageDataModule, TensorImages, normalize, random_flip
from diffusion_lightning.randomness import Stream, derive_seed, draw_some


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
        self.train_batches.setdefault(self.current_epoch, []).append([part.clone() for part in batch])
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.val_batches.setdefault(self.current_epoch, []).append([part.clone() for part in batch])

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


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_normalize_is_exact():
    levels = torch.arange(256, dtype=torch.uint8)
    result = normalize(levels)
    assert result.dtype == torch.float32
    assert result[0] == -1.0
    assert result[255] == 1.0
    torch.testing.assert_close(result.double(), torch.arange(256).double() / 127.5 - 1, rtol=0, atol=1e-7)
    assert levels[1] == 1, "the input must stay as it was"


def test_random_flip_mirrors_half_of_the_images_left_to_right():
    images = torch.randint(0, 256, (4000, 1, 3, 5), dtype=torch.uint8)
    flipped = random_flip(images, seed=1)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.04  # five standard deviations
    assert torch.equal(flipped, random_flip(images, seed=1))
    assert not torch.equal(flipped, random_flip(images, seed=2))


def test_random_flip_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    random_flip(torch.zeros(8, 1, 2, 2), seed=0)
    assert torch.equal(state, torch.get_rng_state())


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(60, 10), (61, 10), (50, 7), (9, 4), (5, 128), (3, 1)])
def test_training_shares_are_disjoint_equal_and_nearly_all(world, size, batch_size):
    shares = [list(order(size, batch_size, world, rank)) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1, "ranks differ in their batches"
    assert all(len(order(size, batch_size, world, rank)) == len(shares[0]) for rank in range(world))
    seen = [index for share in shares for batch in share for index in batch]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(size))
    if size // world >= batch_size:
        assert all(len(batch) == batch_size for batch in shares[0])
        assert len(shares[0]) == size // world // batch_size
    else:
        assert [len(batch) for batch in shares[0]] == [size // world]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(60, 10), (61, 10), (10, 3), (2, 128)])
def test_without_shuffling_every_image_is_taken_exactly_once_in_order(world, size, batch_size):
    orders = [order(size, batch_size, world, rank, training=False) for rank in range(world)]
    assert all(len(list(each)) == len(each) for each in orders)
    assert sorted(index for each in orders for batch in each for index in batch) == list(range(size))
    assert all(batch == sorted(batch) for each in orders for batch in each)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_order_drawn_once_is_the_same_in_every_epoch_and_over_all_ranks(world):
    def batches(rank, epoch, seed=5):
        each = BatchOrder(60, 12 // world, shuffle="once", drop_last=False, seed=seed, num_replicas=world, rank=rank)
        each.set_epoch(epoch)
        return list(each)

    shares = [batches(rank, epoch=0) for rank in range(world)]
    assert shares == [batches(rank, epoch=7) for rank in range(world)]
    assert shares != [batches(rank, epoch=0, seed=6) for rank in range(world)]
    # the batches of all ranks together are the order's next 12, whatever the number of ranks
    whole = draw_some(60, 60, seed=5).tolist()
    for index, parts in enumerate(zip(*shares, strict=True)):
        assert sorted(number for part in parts for number in part) == sorted(whole[12 * index : 12 * index + 12])


def test_the_order_is_a_function_of_seed_and_epoch_only():
    first = list(order(1000, 10, epoch=3, seed=5))
    torch.rand(7)
    again = order(1000, 10, epoch=0, seed=5)
    list(again)
    again.set_epoch(3)
    assert list(again) == list(again) == first
    assert list(order(1000, 10, epoch=4, seed=5)) != first
    assert list(order(1000, 10, epoch=3, seed=6)) != first


def test_the_order_is_shuffled():
    flat = torch.tensor([index for batch in order(10_000, 100) for index in batch], dtype=torch.float64)
    # The correlation of a random permutation with its position is about N^(-1/2).
    assert torch.corrcoef(torch.stack((flat, torch.arange(10_000))))[0, 1].abs() < 0.05


def test_ranks_together_take_the_batches_that_one_process_would():
    alone = list(order(64, 16))
    ranks = [list(order(64, 8, world=2, rank=rank)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in alone]


def test_an_epoch_can_start_in_the_middle():
    whole = list(order(50, 8, epoch=2))
    resumed = order(50, 8, epoch=2)
    resumed.start_batch = 4
    resumed.set_epoch(2)
    assert list(resumed) == whole[4:]
    assert len(resumed) == len(whole)
    resumed.set_epoch(3)
    assert list(resumed) == list(order(50, 8, epoch=3))


def test_fewer_training_images_than_processes_is_an_error():
    with pytest.raises(ValueError, match="0 training images cannot feed 1 processes"):
        order(0, 4)
    with pytest.raises(ValueError, match="2 training images cannot feed 3 processes"):
        order(2, 4, world=3)


# --- loaders --------------------------------------------------------------------------------------------------------


def test_batches_hold_the_images_of_their_labels():
    data = Numbered(batch_size=8)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels in loader:
            assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
            assert torch.equal(images, data.pixels[labels])


def test_the_batches_do_not_depend_on_workers():
    batches = {}
    for workers in (0, 2):
        loader = Numbered(batch_size=8, num_workers=workers, seed=3).train_dataloader()
        assert loader.persistent_workers == (workers > 0)
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(list(loader))
        batches[workers] = dict(enumerate(epochs))
    assert_same(batches[0], batches[2])
    assert numbers(batches[0][0]) != numbers(batches[0][1])


def test_iterating_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    data = Numbered(batch_size=8)
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(state, torch.get_rng_state())


def test_workers_end_with_a_process_that_an_error_ended():
    """They leave SIGTERM to the training process; a loader that a traceback still holds must not keep it waiting."""
    code = (
        "import builtins\n"
        "from diffusion_lightning import EmbeddedMNIST\n"
        "builtins.kept = iter(EmbeddedMNIST(num_workers=1).train_dataloader())\n"
        "next(builtins.kept)\n"
        "raise SystemExit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_nothing_before_its_first_batch(workers):
    data = Numbered(batch_size=8)
    batches = order(50, 8)
    iterator = iter(BatchLoader(data.train_images, batch_size=None, sampler=batches, num_workers=workers))
    batches.set_epoch(1)
    assert next(iterator)[1].tolist() == next(iter(order(50, 8, epoch=1)))


def test_predict_draws_each_index_once():
    batches = list(Numbered(batch_size=8, num_predict=20).predict_dataloader())
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert torch.equal(torch.cat(batches), torch.arange(20))
    assert batches[0].dtype == torch.int64


@pytest.mark.parametrize("name", ["batch_size", "num_predict", "num_workers"])
def test_arguments_are_kept_and_checked(name):
    assert getattr(Numbered(**{name: 3}), name) == 3
    least = 0 if name == "num_workers" else 1
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        Numbered(**{name: least - 1})
    for wrong in (float("nan"), least + 0.5):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {wrong}"):
            Numbered(**{name: wrong})


# --- with a trainer -------------------------------------------------------------------------------------------------


def test_a_run_sees_a_new_order_each_epoch_normalized():
    data = Numbered(batch_size=8)
    module = fit(data, max_epochs=3)
    assert list(module.train_batches) == [0, 1, 2]
    for epoch, batches in module.train_batches.items():
        assert numbers(batches) == list(order(50, 8, epoch=epoch))
        for images, labels in batches:
            assert images.dtype == torch.float32
            torch.testing.assert_close(images, data.pixels[labels] / 127.5 - 1)
            assert images.min() >= -1
            assert images.max() <= 1


def test_a_run_validates_every_held_out_image_once_and_unflipped():
    data = Numbered(batch_size=4, flip=True)
    module = fit(data)
    first, *others = [numbers(batches) for batches in module.val_batches.values()]
    assert all(other == first for other in others)
    for batches in module.val_batches.values():
        assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(50, 61))
        for images, labels in batches:
            torch.testing.assert_close(images, data.pixels[labels] / 127.5 - 1)


def mirrored(data, batches):
    """For each image of the batches, whether it is mirrored; any third thing is a failure."""
    result = []
    for images, labels in batches:
        plain = normalize(data.pixels[labels])
        same, flipped = ((images == other).flatten(1).all(1) for other in (plain, plain.flip(-1)))
        assert (same | flipped).all()
        result.append(flipped.tolist())
    return result


def test_flips_in_training_differ_between_batches_epochs_and_seeds():
    data = Numbered(batch_size=100, flip=True, train=300)
    module = fit(data)
    flips = [flip for batches in module.train_batches.values() for flip in mirrored(data, batches)]
    assert len(flips) == 6
    assert len({tuple(flip) for flip in flips}) == 6
    assert abs(sum(map(sum, flips)) / 600 - 0.5) < 0.1
    other = Numbered(batch_size=100, flip=True, train=300, seed=1)
    assert mirrored(other, fit(other).train_batches[0]) != flips[:3]
    plain = Numbered(batch_size=100, train=300)
    assert not any(map(any, mirrored(plain, fit(plain).train_batches[0])))


def test_flips_are_a_function_of_seed_rank_epoch_and_batch():
    data = Numbered(batch_size=8, flip=True, seed=3)
    for epoch, batches in fit(data).train_batches.items():
        for index, (images, labels) in enumerate(batches):
            expected = random_flip(data.pixels[labels], derive_seed(3, 0, epoch, index, Stream.FLIP))
            torch.testing.assert_close(images, normalize(expected), rtol=0, atol=0)


def test_order_and_flips_do_not_depend_on_history_or_workers():
    torch.manual_seed(0)
    plain = fit(Numbered(batch_size=8, flip=True, seed=7))
    torch.manual_seed(1)
    other = fit(Numbered(batch_size=8, flip=True, seed=7, num_workers=2), num_sanity_val_steps=2, val_check_interval=2)
    assert_same(plain.train_batches, other.train_batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(workers, tmp_path):
    whole = fit(Numbered(batch_size=8, flip=True), max_epochs=3)
    first, module = trainer(max_epochs=1), Recorder()
    first.fit(module, datamodule=Numbered(batch_size=8, flip=True))
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(
        Numbered(batch_size=8, flip=True, num_workers=workers), max_epochs=3, ckpt_path=tmp_path / "last.ckpt"
    )
    assert_same(module.train_batches | resumed.train_batches, whole.train_batches)


def test_overfit_batches_repeats_the_same_batches():
    module = fit(Numbered(batch_size=8, flip=False), overfit_batches=2)
    assert numbers(module.train_batches[0]) == numbers(module.train_batches[1]) == [[*range(8)], [*range(8, 16)]]


def test_predict_with_a_trainer_gives_indices():
    module = Recorder()
    trainer().predict(module, datamodule=Numbered(batch_size=8, num_predict=20), return_predictions=False)
    assert torch.equal(torch.cat(module.predict_batches), torch.arange(20))


class TwoProcesses:
    """What a loader asks of a trainer, as rank 1 of 2."""

    world_size, global_rank, overfit_batches = 2, 1, 0

    class strategy:
        root_device = torch.device("cpu")


def test_loaders_take_the_share_of_their_rank():
    data = Numbered(batch_size=8, num_predict=9, seed=2)
    data.trainer = TwoProcesses()
    assert numbers(data.train_dataloader()) == list(order(50, 8, world=2, rank=1, seed=2))
    assert torch.cat(list(data.predict_dataloader())).tolist() == [1, 3, 5, 7]
    assert numbers(data.val_dataloader()) == [(50 + draw_some(11, 11, seed=2)[1::2]).tolist()]


def test_the_first_held_out_batches_are_a_random_sample(make_data):
    """The embedded held-out digits begin with fifty ones."""
    for seed in (0, 1):
        data = make_data(batch_size=50, seed=seed)
        assert data.held_out_images.labels[:50].tolist() == 50 * [1]
        for loader in (data.val_dataloader(), data.test_dataloader()):
            labels = next(iter(loader))[1]
            assert (torch.bincount(labels, minlength=10) > 0).all()


# --- reference ------------------------------------------------------------------------------------------------------


def test_fid_reference_is_all_training_images_as_they_are():
    data = Numbered(flip=True, train=1203, batch_size=7)
    batches = list(data.fid_reference())
    assert [len(batch) for batch in batches] == [500, 500, 203]
    assert torch.equal(torch.cat(batches), data.pixels[:1203])


def test_fingerprint_changes_with_one_pixel_and_shape_only():
    assert Numbered().fingerprint() == Numbered(batch_size=3, seed=9).fingerprint()
    changed = Numbered()
    changed.pixels[49, 2, 3, 4] ^= 1
    assert changed.fingerprint() != Numbered().fingerprint()
    held_out = Numbered()
    held_out.pixels[50] ^= 1
    assert held_out.fingerprint() == Numbered().fingerprint()
    reshaped = Numbered()
    reshaped.pixels = reshaped.pixels.reshape(-1, 3, 5, 4)
    assert reshaped.fingerprint() != Numbered().fingerprint()


def test_fingerprint_is_computed_once(monkeypatch):
    data = EmbeddedMNIST()
    first = data.fingerprint()
    monkeypatch.setattr(data, "_reference_digest", lambda: pytest.fail("computed again"))
    assert data.fingerprint() == first
    assert len(first) == 16


# --- on the training device -----------------------------------------------------------------------------------------


class CountingSet(TensorImages):
    """Says where it was moved to."""

    moved: ClassVar[list] = []

    def to(self, device):
        CountingSet.moved.append((len(self), device.type))
        return super().to(device)


class Counted(Numbered):
    def load_images(self):
        return tuple(CountingSet(part.images, part.labels) for part in super().load_images())


def test_images_on_the_device_give_the_same_batches_in_the_same_order(monkeypatch, tmp_path):
    def run(**kwargs):
        pl.seed_everything(1, verbose=False)
        return fit(Counted(flip=True, batch_size=8, **kwargs), max_epochs=3)

    monkeypatch.setattr(CountingSet, "moved", [])
    in_memory = run(on_device=False)
    by_default = run()
    assert CountingSet.moved == []  # on a CPU nothing changes
    on_device = run(on_device=True)
    assert sorted(CountingSet.moved) == [(11, "cpu"), (50, "cpu")]
    for other in (on_device, by_default):
        assert_same(other.train_batches, in_memory.train_batches)
        assert_same(other.val_batches, in_memory.val_batches)


def test_a_resumed_run_with_images_on_the_device_sees_what_an_uninterrupted_one_sees(tmp_path):
    data = {"flip": True, "batch_size": 8, "seed": 2, "on_device": True}
    whole = fit(Numbered(**data), max_epochs=3)
    stopped = trainer(max_epochs=1)
    stopped.fit(Recorder(), datamodule=Numbered(**data))
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    resumed = fit(Numbered(**data), ckpt_path=tmp_path / "a.ckpt", max_epochs=3)
    assert_same(resumed.train_batches, {epoch: whole.train_batches[epoch] for epoch in (1, 2)})


def on_a_gpu(monkeypatch, free, image_size=None, **kwargs):
    """Whether a trainer whose GPU has so much free memory would get the training set of 3,000 bytes there."""
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(TensorImages, "to", lambda images, device: moved.append(device) or images)
    data = Numbered(**kwargs)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    data._images = data.load_images()
    data._images[0].image_size = image_size
    assert data._images[0].images.nbytes == 3000
    data._placed(data.train_images)
    return moved == [torch.device("cuda", 0)]


def test_by_default_a_gpu_gets_what_takes_less_than_a_quarter_of_its_free_memory(monkeypatch):
    assert on_a_gpu(monkeypatch, free=12_001)
    assert not on_a_gpu(monkeypatch, free=12_000)
    assert not on_a_gpu(monkeypatch, free=10**9, num_workers=1)
    assert not on_a_gpu(monkeypatch, free=10**9, image_size=8)  # resized on the CPU, as before
    assert not on_a_gpu(monkeypatch, free=10**9, on_device=False)
    assert on_a_gpu(monkeypatch, free=0, on_device=True)


def test_only_what_is_in_memory_is_pinned(monkeypatch):
    data = Numbered()
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    on_cpu = data.train_images
    elsewhere = TensorImages(on_cpu.images.to("meta"), on_cpu.labels.to("meta"))
    assert data._pins_memory(on_cpu)
    assert not data._pins_memory(elsewhere)


def test_on_device_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="on_device=True needs num_workers=0, got 2"):
        Numbered(on_device=True, num_workers=2)
    with pytest.raises(ValueError, match="on_device must be true, false or 'auto', got 'gpu'"):
        Numbered(on_device="gpu")
    data = Numbered(on_device=True)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with pytest.raises(ValueError, match="on_device=True: the images are not in memory"):
        data._placed(torch.utils.data.TensorDataset(torch.zeros(3)))


# --- classes --------------------------------------------------------------------------------------------------------


def test_training_examples_are_counted_by_class():
    data = Numbered(train=3, held_out=2)
    assert data.class_counts() == [1, 1, 1] + 97 * [0]
    assert EmbeddedMNIST().class_counts() == 10 * [900]
    points = Points(num_points=70)  # its set has no attribute of its labels
    labels = points.sets()[0].tensors[1]
    assert points.class_counts() == [(labels == 0).sum(), (labels == 1).sum()]


def test_labels_that_are_no_classes_are_not_counted():
    for labels in (torch.zeros(3), torch.tensor([0, -1, 1]), torch.zeros(3, 2, dtype=torch.int64)):
        data = Numbered()
        data._images = TensorImages(data.pixels[:3], labels), TensorImages(data.pixels[3:4], labels[:1])
        with pytest.raises(ValueError, match="Numbered: its labels are no classes"):
            data.class_counts()


def test_classes_have_their_names():
    assert EmbeddedMNIST().class_names == MNIST().class_names == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert CIFAR10().class_names == names
    assert Points().class_names == ["left", "right"]
    assert Points("heart").class_names is None
    assert Numbered().class_names is None
