import gzip
import hashlib
import io
import os
import struct
import urllib.error
from importlib.resources import files

import numpy as np
import pytest
import torch
import torchvision

from diffusion_lightning.data import MNIST, EmbeddedMNIST

COUNTS = {"train": 24, "t10k": 12}


def idx(array):
    """The bytes of an array in the idx format of MNIST."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for part, n in COUNTS.items()
    }


@pytest.fixture
def idx_files(arrays):
    return {
        f"{part}-{kind}": idx(array)
        for part, pair in arrays.items()
        for kind, array in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), pair, strict=True)
    }


@pytest.fixture
def root(tmp_path, idx_files):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files.items():
        (raw / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(request, *args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_embedded_digits_are_the_first_900_and_the_last_100_of_each_class():
    data = EmbeddedMNIST()
    assert (data.shape, data.num_classes, data.fid_feature) == ((1, 28, 28), 10, "digits")
    with files("diffusion_lightning.data").joinpath("embedded/mnist_10k.npz").open("rb") as file:
        arrays = np.load(file)
        images, labels = arrays["images"], arrays["labels"]
    train, held_out = data.train_images, data.held_out_images
    assert (len(train), len(held_out)) == (9000, 1000)
    assert (train.images.shape, train.images.dtype, train.labels.dtype) == ((9000, 1, 28, 28), torch.uint8, torch.int64)
    for digit in range(10):
        of_digit = torch.from_numpy(images[labels == digit])
        assert torch.equal(train.images[train.labels == digit, 0], of_digit[:900])
        assert torch.equal(held_out.images[held_out.labels == digit, 0], of_digit[900:])


def test_embedded_digits_look_like_digits():
    train = EmbeddedMNIST().train_images
    means = torch.stack([train.images[train.labels == digit].float().mean(0) for digit in range(10)])
    held_out = EmbeddedMNIST().held_out_images
    nearest = torch.cdist(held_out.images.float().flatten(1), means.flatten(1)).argmin(1)
    # The nearest class mean is right for four of five MNIST digits; with mixed-up labels for one in ten.
    assert (nearest == held_out.labels).float().mean() > 0.75


def test_mnist_reads_torchvisions_layout(root, arrays, no_network):
    data = MNIST(root=str(root), batch_size=5)
    assert (data.root, data.shape, data.num_classes, data.fid_feature) == (str(root), (1, 28, 28), 10, "digits")
    data.prepare_data()
    for part, images in (("train", data.train_images), ("t10k", data.held_out_images)):
        pixels, labels = arrays[part]
        assert torch.equal(images.images, torch.from_numpy(pixels).unsqueeze(1))
        assert torch.equal(images.labels, torch.from_numpy(labels).long())


def test_mnist_in_a_read_only_folder(root, no_network, monkeypatch):
    for folder in (root / "MNIST" / "raw", root / "MNIST", root):
        folder.chmod(0o555)

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "makedirs", refuse)  # root may write anywhere, so the mode alone proves nothing
    try:
        data = MNIST(root=str(root))
        data.prepare_data()
        data.setup("fit")
        assert len(data.train_images) == COUNTS["train"]
    finally:
        for folder in (root, root / "MNIST", root / "MNIST" / "raw"):
            folder.chmod(0o755)


def test_mnist_downloads_what_is_missing_once(tmp_path, idx_files, arrays, monkeypatch):
    served = {f"{name}.gz": gzip.compress(content) for name, content in idx_files.items()}
    asked = []

    class Response(io.BytesIO):
        def __init__(self, url):
            super().__init__(served[url.rsplit("/", 1)[1]])
            self.url, self.length = url, len(self.getvalue())

    def serve(request):
        asked.append(request.full_url)
        return Response(request.full_url)

    monkeypatch.setattr("urllib.request.urlopen", serve)
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in served.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    data = MNIST(root=str(tmp_path / "new"))
    data.prepare_data()
    assert torch.equal(data.train_images.images[:, 0], torch.from_numpy(arrays["train"][0]))
    assert torch.equal(data.held_out_images.images[:, 0], torch.from_numpy(arrays["t10k"][0]))
    assert {url.rsplit("/", 1)[1] for url in asked} == set(served)
    asked.clear()
    data.prepare_data()
    assert not asked


def assert_one_clear_line(error, root):
    message = str(error.value)
    assert "\n" not in message
    assert f"data.root={str(root)!r}" in message
    assert "MNIST/raw/" in message


def test_mnist_without_network_is_one_clear_line(tmp_path, no_network):
    root = tmp_path / "empty"
    with pytest.raises(OSError, match="no route to host") as error:
        MNIST(root=str(root)).prepare_data()
    assert_one_clear_line(error, root)


def test_mnist_where_nothing_can_be_written_is_one_clear_line(tmp_path, no_network):
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "data"
    with pytest.raises(OSError, match=r"data\.root") as error:
        MNIST(root=str(root)).prepare_data()
    assert_one_clear_line(error, root)


def test_damaged_mnist_is_one_clear_line(root, no_network):
    images = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"data\.root") as error:
        MNIST(root=str(root)).setup("fit")
    assert_one_clear_line(error, root)
