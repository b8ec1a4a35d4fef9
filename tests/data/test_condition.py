"""The picture made small as a condition, and what every data module says of the conditions that it gives."""

import pytest
import torch
from jsonargparse import ArgumentParser
from numbered import Recorder, fit, trainer

from diffusion_lightning import ConditionSource, EmbeddedMNIST, ImageDataModule, TensorImages
from diffusion_lightning.data import CIFAR10
from diffusion_lightning.data.condition import downsampled
from diffusion_lightning.data.tensor_images import normalize
from diffusion_lightning.randomness import draw_some


class Noise(ImageDataModule):
    """Random images, of as many classes as are asked for, and vectors if any are."""

    shape = (3, 4, 6)

    def __init__(self, num_classes=3, vectors=False, flip=False, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.flip = flip
        self.condition_dim = 2 if vectors else None
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (20, *self.shape), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(20) % num_classes
        self.vectors = torch.randn(20, 2, generator=generator) if vectors else None

    def load_images(self):
        vectors = (self.vectors[:16], self.vectors[16:]) if self.vectors is not None else (None, None)
        return (
            TensorImages(self.pixels[:16], self.labels[:16], vectors=vectors[0]),
            TensorImages(self.pixels[16:], self.labels[16:], vectors=vectors[1]),
        )


HALF = ConditionSource(downsample=2)


def by_hand(x, factor=2):
    """Averages of squares, pixel by pixel in float64."""
    height, width = x.shape[2] // factor, x.shape[3] // factor
    small = torch.empty(len(x), x.shape[1], height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            square = x[:, :, factor * i : factor * (i + 1), factor * j : factor * (j + 1)]
            small[:, :, i, j] = square.double().mean((2, 3))
    return small


def test_a_small_picture_is_the_average_of_its_pixels():
    x = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(downsampled(x, 3).double(), by_hand(x, 3), rtol=0, atol=1e-6)
    assert downsampled(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), 2).tolist() == [[[[3.0]]]]


@pytest.mark.parametrize("on_device", [False, True])
def test_the_small_picture_is_that_of_the_flipped_image(on_device):
    plain = fit(Noise(flip=True, batch_size=8, seed=1), max_epochs=2)
    conditioned = fit(Noise(flip=True, batch_size=8, seed=1, condition=HALF, on_device=on_device), max_epochs=2)
    for epoch, batches in plain.train_batches.items():
        for (x, labels), (same, condition) in zip(batches, conditioned.train_batches[epoch], strict=True):
            assert torch.equal(x, same), "the images are those without a condition"
            assert condition.keys() == {"labels", "picture"}
            assert torch.equal(condition["labels"], labels)
            assert condition["picture"].shape == (8, 3, 2, 3)
            torch.testing.assert_close(condition["picture"].double(), by_hand(x), rtol=0, atol=1e-6)
    assert any(not torch.equal(x, y) for (x, _), (y, _) in zip(*plain.train_batches.values(), strict=True))


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("condition", [None, HALF])
def test_examples_are_what_a_validation_step_gets(vectors, num_classes, condition):
    data = Noise(num_classes, vectors, batch_size=4, seed=5, condition=condition)
    module = Recorder()
    trainer(max_epochs=1).fit(module, datamodule=data)
    [(x, given)] = module.val_batches[0]
    indices = data.first_held_out(4)
    assert torch.equal(indices, draw_some(4, 4, seed=5))
    same, conditions = data.examples(indices)
    assert torch.equal(x, same)
    assert torch.equal(x, normalize(data.pixels[16:][indices]))
    names = {"labels"} if num_classes > 1 else set()
    names |= ({"vector"} if vectors else set()) | ({"picture"} if condition else set())
    assert conditions.keys() == names
    if not vectors and condition is None:  # as ever
        assert torch.equal(given, data.labels[16:][indices])
    else:
        assert given.keys() == names
        assert all(torch.equal(given[name], conditions[name]) for name in names)
    if vectors:
        assert torch.equal(conditions["vector"], data.vectors[16:][indices])


def test_floats_have_their_small_picture_and_what_is_no_pair_passes():
    data, x = Noise(condition=HALF), torch.randn(2, 3, 4, 6)
    same, condition = data.on_after_batch_transfer((x, torch.tensor([2, 0])), 0)
    assert same is x
    assert condition["labels"].tolist() == [2, 0]
    torch.testing.assert_close(condition["picture"].double(), by_hand(x), rtol=0, atol=1e-6)
    for other in (torch.arange(3), (x, x, x), (["a"], x)):
        assert data.on_after_batch_transfer(other, 0) is other
    assert Noise().on_after_batch_transfer((x, ["a", "b"]), 0) == (x, ["a", "b"])


def test_the_first_held_out_are_those_that_validation_reads_first():
    data = Noise(batch_size=3, seed=7)
    x, _ = next(iter(data.val_dataloader()))
    assert torch.equal(normalize(x), data.examples(data.first_held_out(3))[0])
    assert torch.equal(data.first_held_out(2), data.first_held_out(3)[:2])
    assert len(data.first_held_out(100)) == 4


def test_examples_to_train_on_are_not_flipped():
    data = Noise(flip=True, condition=HALF)
    x, conditions = data.examples(range(16), held_out=False)
    assert torch.equal(x, normalize(data.pixels[:16]))
    assert torch.equal(conditions["labels"], data.labels[:16])


def test_what_data_give_is_known_before_they_are_set_up():
    data = EmbeddedMNIST(condition=ConditionSource(downsample=4))
    assert (data.num_classes, data.condition_channels, data.condition_dim, data.context_dim) == (10, 1, None, None)
    plain = EmbeddedMNIST()
    assert (plain.condition_channels, plain.condition_dim, plain.context_dim) == (None, None, None)
    assert Noise(condition=HALF).condition_channels == 3
    assert data._images is None


def test_statistics_of_a_set_that_does_not_hold_its_vectors_are_read():
    class Reading(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, indices):
            return self.images[indices]

    data, held = Noise(vectors=True), Noise(vectors=True)
    data._images = tuple(Reading(images) for images in held.sets())
    mean, std = data.vector_statistics()
    assert torch.equal(mean, held.vector_statistics()[0])
    assert torch.equal(std, held.vectors[:16].double().std(0, correction=0).float())
    assert data.class_counts() == held.class_counts() == [6, 5, 5]


def test_statistics_leave_out_vectors_that_are_none():
    data = Noise(vectors=True)
    data.vectors[3, 1] = torch.nan
    given = data.vectors[:16][torch.arange(16) != 3].double()
    mean, std = data.vector_statistics()
    torch.testing.assert_close(mean, given.mean(0).float(), rtol=0, atol=0)
    torch.testing.assert_close(std, given.std(0, correction=0).float(), rtol=0, atol=0)
    data.vectors[:16] = torch.nan
    assert data.vector_statistics() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{downsample: 4}", ConditionSource(downsample=4)),
        ("{columns: [angle, kind]}", ConditionSource(columns=["angle", "kind"])),
        ("null", None),
    ],
)
def test_a_config_says_it_in_a_line(text, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--condition", type=ConditionSource | None)
    options = parser.parse_args([f"--condition={text}"])
    assert parser.instantiate(options).condition == expected


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "data.condition: give columns of the metadata, downsample or clusters, or null for no condition"),
        ({"columns": []}, r"data.condition.columns=\[\]: must be a list of different names"),
        ({"columns": ["a", "a"]}, r"data.condition.columns=\['a', 'a'\]: must be a list of different names"),
        ({"columns": "ab"}, "data.condition.columns='ab': must be a list of different names"),
        ({"downsample": 1}, "downsample must be at least 2, got 1"),
        ({"downsample": 2.5}, "downsample must be at least 2, got 2.5"),
    ],
)
def test_a_source_of_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ConditionSource(**arguments)


def test_a_factor_that_does_not_divide_the_sides_is_refused_before_anything_is_read():
    data = EmbeddedMNIST(condition=ConditionSource(downsample=3))
    message = (
        r"^data.condition.downsample=3: must divide the sides of the pictures, \(1, 28, 28\): one of 2, 4, 7, 14, 28$"
    )
    for ask in (lambda: data.condition_channels, data.setup):
        with pytest.raises(ValueError, match=message):
            ask()
    assert data._images is None
    # the size that the images are resized to, and not their own
    assert CIFAR10(image_size=24, condition=ConditionSource(downsample=3)).condition_channels == 3
    with pytest.raises(ValueError, match=r"\(3, 5, 5\): one of 5$"):
        _ = CIFAR10(image_size=5, condition=ConditionSource(downsample=2)).condition_channels


def test_columns_of_data_without_metadata_are_refused():
    message = r"^data.condition.columns=\['angle'\]: EmbeddedMNIST has no metadata; give .*ImageFolder.*downsample$"
    with pytest.raises(ValueError, match=message):
        EmbeddedMNIST(condition=ConditionSource(columns=["angle"]))
