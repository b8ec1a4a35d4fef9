from types import SimpleNamespace
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from numbered import Numbered, Recorder, assert_same, fit, numbers, order, trainer

from diffusion_lightning.data import CIFAR10, MNIST, EmbeddedMNIST, Points, TensorImages
from diffusion_lightning.data.tensor_images import normalize, random_flip
from diffusion_lightning.randomness import Stream, derive_seed, draw_some

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


def test_public_names_are_where_they_have_always_been():
    from diffusion_lightning import data
    from diffusion_lightning.data import base

    assert base.BatchDataModule is data.BatchDataModule
    assert base.ImageDataModule is data.ImageDataModule
    assert base.TensorImages is data.TensorImages
