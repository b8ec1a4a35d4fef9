import hashlib
import pickle
import urllib.error

import numpy as np
import pytest
import torch
import torchvision

from diffusion_lightning.data import CIFAR10


@pytest.fixture
def root(tmp_path, monkeypatch):
    """CIFAR-10 as torchvision keeps it, four pictures to a file."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        pixels = rng.integers(0, 256, (4, 3 * 32 * 32), np.uint8)
        return write(name, {"data": pixels, "labels": rng.integers(0, 10, 4).tolist()})

    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(source, "test_list", [batch("test_batch")])
    _, md5 = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(source, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(request, *args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_cifar10_reads_torchvisions_layout(root):
    data = CIFAR10(root=str(root), batch_size=4)
    assert (data.shape, data.num_classes, data.fid_feature, data.flip) == ((3, 32, 32), 10, "inception", True)
    data.prepare_data()
    for images, names in (
        (data.train_images, [f"data_batch_{i}" for i in range(1, 6)]),
        (data.held_out_images, ["test_batch"]),
    ):
        batches = [pickle.loads((root / "cifar-10-batches-py" / name).read_bytes()) for name in names]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        assert torch.equal(images.images, torch.from_numpy(pixels))
        assert images.labels.tolist() == [label for batch in batches for label in batch["labels"]]
        assert (images.images.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
        assert images.images.is_contiguous()


def test_flips_can_be_turned_off():
    assert CIFAR10(flip=False).flip is False


def test_cifar10_without_network_is_one_clear_line(tmp_path):
    with pytest.raises(OSError, match="no route to host") as error:
        CIFAR10(root=str(tmp_path)).prepare_data()
    message = str(error.value)
    assert "\n" not in message
    assert f"data.root={str(tmp_path)!r}" in message
    assert "cifar-10-batches-py" in message


def test_damaged_cifar10_is_one_clear_line(root):
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80")
    with pytest.raises(OSError, match="CIFAR10") as error:
        CIFAR10(root=str(root)).prepare_data()
    assert "\n" not in str(error.value)


def test_images_are_served_in_another_size(root):
    """Resized batch by batch for training, validation and the FID's reference alike, which counts as another set."""
    plain, large = CIFAR10(root=str(root), batch_size=4), CIFAR10(root=str(root), batch_size=4, image_size=64)
    assert large.shape == (3, 64, 64)
    images, labels = large.train_images[[3, 0]]
    own, own_labels = plain.train_images[[3, 0]]
    assert (images.shape, images.dtype) == ((2, 3, 64, 64), torch.uint8)
    assert torch.equal(labels, own_labels)
    expected = torch.nn.functional.interpolate(own.float(), (64, 64), mode="bilinear", antialias=True)
    assert (images.float() - expected).abs().max() <= 1  # rounding
    for batch in (next(iter(large.train_dataloader()))[0], next(iter(large.val_dataloader()))[0]):
        assert batch.shape[1:] == (3, 64, 64)
    assert next(large.fid_reference()).shape[1:] == (3, 64, 64)
    assert large.fingerprint() != plain.fingerprint()
    assert CIFAR10(root=str(root), image_size=32).fingerprint() == plain.fingerprint()
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        CIFAR10(image_size=0)
