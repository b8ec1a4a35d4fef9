"""Groups of pictures alike: Lloyd's algorithm, the draw of a group, and what data modules make of them."""

import pytest
import torch
from PIL import Image

from diffusion_lightning import ConditionSource, EmbeddedMNIST, ImageDataModule, ImageFolder, TensorImages
from diffusion_lightning.data.clusters import Groups, cluster


def pictures(brightness, size=(20, 16), seed=0):
    """Of nearly one gray each, noise around it."""
    noise = torch.randint(-3, 4, (len(brightness), 1, *size), generator=torch.Generator().manual_seed(seed))
    return (torch.tensor(brightness)[:, None, None, None] + noise).to(torch.uint8)


class Grays(ImageDataModule):
    """Three grays, which no label tells apart."""

    shape = (1, 20, 16)
    num_classes = 2
    class_names = ["even", "odd"]  # noqa: RUF012

    def load_images(self):
        labels = torch.arange(24) % 2
        held_out = TensorImages(pictures([220, 20, 120] * 8, seed=1), labels)
        return TensorImages(pictures([20, 120, 220] * 8), labels), held_out


def test_pictures_alike_are_of_one_group():
    data = Grays(condition=ConditionSource(clusters=3))
    assert (data.num_classes, data.groups) == (3, None)  # what they are is known with the sets
    for part in data.sets():
        groups = part.labels.view(8, 3)
        assert sorted(groups[0].tolist()) == [0, 1, 2]
        assert torch.equal(groups, groups[:1].expand(8, 3))
    # both sets are divided by the training images' centres: a gray is of the same group in both
    assert torch.equal(data.sets()[0].labels[[2, 0, 1]], data.sets()[1].labels[:3])
    assert (data.groups, data.groups.class_counts) == (Groups([8, 8, 8]), [24])
    assert torch.equal(data.sets()[0].images, pictures([20, 120, 220] * 8))


def test_each_class_has_groups_of_its_own():
    data = Grays(condition=ConditionSource(clusters=3, within_classes=True))
    assert data.num_classes == 6
    for part in data.sets():
        assert torch.equal(part.labels // 3, torch.arange(24) % 2)
        groups = (part.labels % 3).view(4, 6)  # of all grays in both classes
        assert torch.equal(groups, groups[:1].expand(4, 6))
        assert sorted(groups[0, ::2].tolist()) == sorted(groups[0, 1::2].tolist()) == [0, 1, 2]
    assert (data.groups, data.groups.class_counts) == (Groups([4] * 6, 2), [12, 12])


def test_centres_are_the_means_of_the_pictures_nearest_to_them():
    images = EmbeddedMNIST().train_images.images[:600]
    nothing = torch.zeros(600, dtype=torch.int64)
    centres = cluster(images, nothing, 12)
    groups = centres.of(images, nothing)
    small = images.double().view(600, 14, 2, 14, 2).mean((2, 4)).flatten(1)  # by hand
    distances = torch.stack([(small - centre).square().sum(1) for centre in centres.values[0]], 1)
    assert torch.equal(groups, distances.argmin(1))
    for group in range(12):
        torch.testing.assert_close(centres.values[0, group], small[groups == group].mean(0))
    assert torch.equal(cluster(images, nothing, 12).values, centres.values)


def test_groups_know_more_of_digits_than_chance():
    data = EmbeddedMNIST(condition=ConditionSource(clusters=40))
    of_class = EmbeddedMNIST().train_images.labels
    table = torch.zeros(40, 10).index_put_((data.train_images.labels, of_class), torch.ones(9000), accumulate=True)
    assert table.max(1).values.sum() / 9000 > 0.6  # most of a group are of one class: by chance it would be 0.1


def test_a_group_that_loses_all_its_pictures_keeps_its_centre():
    images = torch.full((5, 1, 1, 1), 20, dtype=torch.uint8)  # all are nearest to one centre
    nothing = torch.zeros(5, dtype=torch.int64)
    centres = cluster(images, nothing, 3)
    assert centres.values.isfinite().all()
    assert centres.of(images, nothing).tolist() == [0] * 5


def test_a_group_is_drawn_as_often_as_the_class_has_its_examples():
    groups = Groups([1, 3, 0, 0, 5, 5, 2, 0], classes=4)
    assert groups.class_counts == [4, 0, 10, 2]
    drawn = [
        torch.bincount(groups.draw(torch.full((20_000,), c), torch.Generator().manual_seed(c)), minlength=8) / 20_000
        for c in range(4)
    ]
    expected = torch.tensor(
        [
            [1 / 4, 3 / 4, 0, 0, 0, 0, 0, 0],
            [0, 0, 1 / 2, 1 / 2, 0, 0, 0, 0],  # without examples
            [0, 0, 0, 0, 1 / 2, 1 / 2, 0, 0],
            [0, 0, 0, 0, 0, 0, 1, 0],
        ]
    )
    # five standard errors of a share drawn 20,000 times
    torch.testing.assert_close(torch.stack(drawn), expected, atol=0.018, rtol=0)
    assert (torch.stack(drawn)[expected == 0] == 0).all()


def test_a_folder_in_memory_has_groups_and_one_on_disk_says_what_to_type(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i, picture in enumerate(pictures([20, 120, 220], size=(8, 8))):
                Image.fromarray(picture[0].numpy()).save(tmp_path / part / name / f"{i}.png")
    options = {"root": str(tmp_path), "image_size": 8, "channels": 1}
    data = ImageFolder(**options, in_memory=True, condition=ConditionSource(clusters=3))
    assert (data.num_classes, data.class_names) == (3, ["a", "b"])
    assert sorted(data.sets()[0].labels.tolist()) == [0, 0, 1, 1, 2, 2]
    data = ImageFolder(**options, in_memory=True, condition=ConditionSource(clusters=3, within_classes=True))
    assert data.num_classes == 6
    assert sorted(data.sets()[0].labels.tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"clusters=3: ImageFolder reads.* add --data.in_memory true"):
        ImageFolder(**options, in_memory=False, condition=ConditionSource(clusters=3)).sets()


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"clusters": 1}, "clusters must be at least 2"),
        ({"clusters": 3, "columns": ["a"]}, r"clusters=3: columns=\['a'\] tell of the pictures already"),
        ({"downsample": 2, "within_classes": True}, "within_classes=True: give clusters, of each class"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments, right):
    with pytest.raises(ValueError, match=right):
        ConditionSource(**arguments)


@pytest.mark.parametrize(("within_classes", "most"), [(False, 24), (True, 12)])
def test_more_groups_than_pictures_are_refused(within_classes, most):
    source = ConditionSource(clusters=25, within_classes=within_classes)
    with pytest.raises(ValueError, match=rf"clusters=25: must be at most the number of images, {most}"):
        Grays(condition=source).sets()
