"""Groups of pictures alike in the place of classes: Lloyd's algorithm, and what data modules make of it."""

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from diffusion_lightning import ConditionSource, EmbeddedMNIST, ImageDataModule, ImageFolder, TensorImages
from diffusion_lightning.data.clusters import cluster, groups_of


def pictures(brightness, size=(20, 16), seed=0):
    """Of nearly one gray each, noise around it."""
    noise = torch.randint(-3, 4, (len(brightness), 1, *size), generator=torch.Generator().manual_seed(seed))
    return (torch.tensor(brightness)[:, None, None, None] + noise).to(torch.uint8)


class Grays(ImageDataModule):
    """Three grays, which no label tells apart."""

    shape = (1, 20, 16)
    num_classes = 2
    class_names = ["odd", "even"]  # noqa: RUF012

    def load_images(self):
        grays = [20, 120, 220] * 8
        labels = torch.arange(24) % 2
        return TensorImages(pictures(grays), labels), TensorImages(pictures(grays, seed=1), labels)


def test_pictures_alike_are_of_one_group():
    data = Grays(condition=ConditionSource(clusters=3))
    for part in data.sets():
        groups = part.labels.view(8, 3)
        assert sorted(groups[0].tolist()) == [0, 1, 2]
        assert torch.equal(groups, groups[:1].expand(8, 3))
    # both sets are divided by the training images' centres
    assert torch.equal(data.sets()[0].labels, data.sets()[1].labels)
    assert (data.num_classes, data.class_names, data.class_counts()) == (3, None, [8, 8, 8])
    assert torch.equal(data.sets()[0].images, pictures([20, 120, 220] * 8))


def test_centres_are_the_means_of_the_pictures_nearest_to_them():
    images = EmbeddedMNIST().train_images.images[:600]
    centres = cluster(images, 12)
    groups = groups_of(images, centres)
    small = images.double().view(600, 14, 2, 14, 2).mean((2, 4)).flatten(1)  # by hand
    distances = torch.stack([(small - centre).square().sum(1) for centre in centres], 1)
    assert torch.equal(groups, distances.argmin(1))
    for group in range(12):
        torch.testing.assert_close(centres[group], small[groups == group].mean(0))
    assert torch.equal(cluster(images, 12), centres)


def test_groups_know_more_of_digits_than_chance():
    data = EmbeddedMNIST(condition=ConditionSource(clusters=40))
    of_class = EmbeddedMNIST().train_images.labels
    table = torch.zeros(40, 10).index_put_((data.train_images.labels, of_class), torch.ones(9000), accumulate=True)
    assert table.max(1).values.sum() / 9000 > 0.6  # most of a group are of one class: by chance it would be 0.1


def test_a_group_that_loses_all_its_pictures_keeps_its_centre():
    images = pictures([20] * 5, size=(1, 1))
    images[:] = 20  # all pictures are the same, so all are nearest to one centre
    centres = cluster(images, 3)
    assert centres.isfinite().all()
    assert groups_of(images, centres).tolist() == [0] * 5


def test_a_folder_in_memory_has_groups_and_one_on_disk_says_what_to_type(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i, picture in enumerate(pictures([20, 120, 220], size=(8, 8))):
                Image.fromarray(picture[0].numpy()).save(tmp_path / part / name / f"{i}.png")
    options = {"root": str(tmp_path), "image_size": 8, "channels": 1, "condition": ConditionSource(clusters=3)}
    data = ImageFolder(**options, in_memory=True)
    assert (data.num_classes, data.class_names) == (3, None)
    assert sorted(data.sets()[0].labels.tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"clusters=3: ImageFolder reads.* add --data.in_memory true"):
        ImageFolder(**options, in_memory=False).sets()


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"clusters": 1}, "clusters must be at least 2"),
        ({"clusters": 3, "columns": ["a"]}, r"clusters=3: columns=\['a'\] tell of the pictures already"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments, right):
    with pytest.raises(ValueError, match=right):
        ConditionSource(**arguments)


def test_more_groups_than_pictures_are_refused():
    with pytest.raises(ValueError, match=r"data.condition.clusters=25: must be at most the number of images, 24"):
        Grays(condition=ConditionSource(clusters=25)).sets()


def test_the_command_line_takes_a_number():
    parser = ArgumentParser()
    parser.add_class_arguments(EmbeddedMNIST, "data")
    given = parser.parse_args(["--data.condition.clusters", "7"])
    assert parser.instantiate(given).data.num_classes == 7
