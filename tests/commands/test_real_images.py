"""The real images of an evaluation: found where they are, as they are, or one line that says what to give."""

import os

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from diffusion_lightning import MNIST, EmbeddedMNIST, ImageFolder, Points
from diffusion_lightning.commands.real_images import data_of_run, image_data, images_of_data, images_of_folder
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.data.loader import image_batches
from diffusion_lightning.data.pictures import PictureFiles


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 4 × 4, in a folder and below it."""
    for index, name in enumerate(("a.png", "b/c.png", "b/d.png")):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + 50 * index
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def test_data_are_rebuilt_from_a_runs_config(tmp_path, folder):
    recipe = {"class_path": "diffusion_lightning.ImageFolder", "init_args": {"root": str(folder), "image_size": 4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": recipe, "model": {"anything": 1}}))
    data = data_of_run(tmp_path)
    assert isinstance(data, ImageFolder)
    assert (data.root, data.image_size) == (str(folder), 4)


@pytest.mark.parametrize("text", ["", "model: 1", "data: 3", "data: {class_path: os.system}", "data: [1", "\x00"])
def test_a_config_that_names_no_data(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"config.yaml names none that can be made \(.*give --data, such as") as error:
        data_of_run(tmp_path)
    assert "\n" not in str(error.value)


def test_no_run():
    with pytest.raises(UsageError, match=r"the checkpoint lies in no run .*: give --data"):
        data_of_run(None)


def test_images_of_the_right_shape_alone():
    data = EmbeddedMNIST()
    assert image_data(data, (1, 28, 28)) is data
    with pytest.raises(
        UsageError, match=r"data=EmbeddedMNIST: has images of shape \(1, 28, 28\): must be \(3, 32, 32\)"
    ):
        image_data(data, (3, 32, 32))
    with pytest.raises(UsageError, match="data=Points: is not of images"):
        image_data(Points(), (1, 28, 28))


def test_training_images_of_data():
    real = images_of_data(EmbeddedMNIST(), from_run=False)
    assert (real.name, real.count) == ("EmbeddedMNIST", 9000)
    assert real.data_id() == EmbeddedMNIST().fingerprint()


def test_data_that_cannot_be_read(monkeypatch, tmp_path):
    def download(self):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    data = MNIST(root=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"the run's training data: data\.root=.*; or give --data or --reference"):
        images_of_data(data, from_run=True)
    with pytest.raises(OSError, match=r"^data\.root="):
        images_of_data(data, from_run=False)


def test_pictures_of_a_folder_as_they_are(folder):
    real = images_of_folder(folder, (3, 4, 4), quiet=True)
    assert (real.name, real.count) == (str(folder), 3)
    for index, name in enumerate(("a.png", "b/c.png", "b/d.png")):
        pixels = torch.from_numpy(np.array(Image.open(folder / name))).permute(2, 0, 1)
        assert torch.equal(real.images[[index]][0][0], pixels)
    gray = images_of_folder(folder, (1, 4, 4), quiet=True)
    assert gray.images[[0, 1]][0].shape == (2, 1, 4, 4)
    assert gray.data_id() != real.data_id()
    before = real.data_id()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    assert images_of_folder(folder, (3, 4, 4), quiet=True).data_id() != before


def test_pictures_on_disk_are_read_by_workers(folder, monkeypatch):
    assert images_of_folder(folder, (3, 4, 4), quiet=True).workers == 0  # in memory
    whole = images_of_folder(folder, (3, 4, 4), quiet=True).images.images
    monkeypatch.setattr("diffusion_lightning.data.pictures.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    real = images_of_folder(folder, (3, 4, 4), quiet=True)
    assert (type(real.images), real.workers) == (PictureFiles, 2)
    before = torch.get_rng_state()
    read = list(image_batches(real.images, 2, real.workers))
    assert [len(batch) for batch in read] == [2, 1]
    assert torch.equal(torch.cat(read), whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert images_of_data(ImageFolder(str(folder), image_size=4), from_run=False).workers == 2
    assert images_of_data(ImageFolder(str(folder), image_size=4, num_workers=1), from_run=False).workers == 1
    assert images_of_data(EmbeddedMNIST(), from_run=False).workers == 0


def test_pictures_that_do_not_fit(folder):
    with pytest.raises(UsageError, match=r"a\.png has 4 × 4 pixels: must have 8 × 8, as the samples"):
        images_of_folder(folder, (3, 8, 8), quiet=True)
    with pytest.raises(UsageError, match=r"folders are of square images, the samples \(3, 4, 8\): give --data"):
        images_of_folder(folder, (3, 4, 8), quiet=True)
    (folder / "b" / "e.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"cannot read the picture .*e\.png"):
        images_of_folder(folder, (3, 4, 4), quiet=True)
