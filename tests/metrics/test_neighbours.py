"""Nearest neighbours: exactly those, in whatever batches they come."""

import pytest
import torch
from torch import Tensor

from diffusion_lightning.data.loader import image_batches
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.metrics.neighbours import find_neighbours, nearest, neighbours_picture
from diffusion_lightning.randomness import draw_some


def pictures(n: int, seed: int, channels: int = 1) -> Tensor:
    drawn = torch.randint(0, 256, (n, channels, 8, 8), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8)


def a_set(images: Tensor) -> TensorImages:
    return TensorImages(images, torch.zeros(len(images), dtype=torch.int64))


def features(images: Tensor) -> Tensor:
    return images.float().mean(-1).flatten(1)


@pytest.mark.parametrize("size", [7, 300, 1000])
def test_nearest_by_its_definition(size):
    queries, candidates = pictures(40, 0), pictures(1000, 1)
    distances, indices = nearest(queries, candidates.split(size), 4)
    for query, found, where in zip(queries, distances, indices, strict=True):
        exact = (candidates.double() - query.double()).flatten(1).norm(dim=1)
        assert torch.equal(exact[where], found)
        assert torch.equal(exact.sort().values[:4], found)


def test_a_training_image_finds_itself_at_distance_zero():
    candidates = torch.randn(500, 128, generator=torch.Generator().manual_seed(0)) + 1000  # where rounding is coarse
    chosen = torch.tensor([3, 499, 0, 250])
    distances, indices = nearest(candidates[chosen], candidates.split(64), 2)
    assert torch.equal(indices[:, 0], chosen)
    assert torch.equal(distances[:, 0], torch.zeros(4).double())
    assert (distances[:, 1] > 0).all()


def test_too_few_candidates():
    with pytest.raises(ValueError, match="k=3: there are only 2 candidates"):
        nearest(torch.zeros(1, 2), [torch.zeros(2, 2)], 3)


def test_copies_are_found_among_many_samples():
    images = pictures(300, 0)
    samples = pictures(50, 1)
    samples[[7, 31]] = images[[100, 5]]
    found = find_neighbours(samples, features(samples), a_set(images), features(images), rows=3, k=4)
    assert found.samples.shape == (3, 1, 8, 8)
    for space in (found.in_features, found.in_pixels):
        assert space.distances.shape == space.indices.shape == (3, 4)
        assert space.distances[:2, 0].tolist() == [0, 0]
        assert space.indices[:2, 0].tolist() == [100, 5]
        assert (space.distances[2] > 0).all()
    assert found.ratios[[7, 31]].tolist() == [0, 0]
    assert found.copies == 2
    exact = (images.double() - found.samples[2].double()).flatten(1).norm(dim=1).sort().values
    assert torch.equal(found.in_pixels.distances[2], exact[:4])


def test_samples_are_ranked_by_how_much_nearer_one_image_is_than_all_others():
    """Among many like images a sample is near to many; far from all but one, it is near to that one."""
    images = torch.tensor([10, 11, 12, 100, 200])[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    samples = torch.tensor([11, 14, 105, 150])[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    found = find_neighbours(samples, features(samples), a_set(images), features(images), rows=3, k=2)
    assert found.ratios.tolist() == pytest.approx([0, 2 / 3, 5 / 93, 1])
    assert found.copies == 2
    assert found.samples[:, 0, 0, 0].tolist() == [11, 105, 14]
    assert found.in_pixels.indices[:, 0].tolist() == [1, 3, 2]


def test_a_copy_of_what_the_data_hold_twice_is_a_copy():
    images = pictures(20, 0)
    images[5] = images[6]
    found = find_neighbours(images[5:6], features(images[5:6]), a_set(images), features(images))
    assert found.copies == 1


def test_the_usual_distance_is_between_different_images():
    """Images in pairs, each pair at its own place: the other one of its pair is the nearest."""
    places = torch.arange(20).repeat_interleave(2) * 12
    images = (places + torch.tensor([0, 3]).repeat(20))[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    found = find_neighbours(images[:1], features(images[:1]), a_set(images), features(images), rows=8, k=5)
    assert found.in_pixels.usual == pytest.approx(3 * 8)
    assert found.in_features.usual == pytest.approx(3 * 8**0.5)
    assert len(found.samples) == 1


def test_the_usual_distance_is_that_of_images_drawn_by_the_seed():
    """Of which every second one is a copy of another: that the evenly spaced ones are all such says nothing."""
    images = pictures(399, 0)
    images[0:396:4] = images[2:398:4]
    distances = torch.cdist(images.double().flatten(1), images.double().flatten(1)).fill_diagonal_(1e9).min(1).values
    found = []
    for seed in (0, 1, 2):
        near = find_neighbours(images[:1], features(images[:1]), a_set(images), features(images), seed=seed)
        found.append(near.in_pixels.usual)
        assert found[-1] == pytest.approx(distances[draw_some(200, 399, seed)].median().item(), abs=1e-4)
    assert any(value > 0 for value in found)


def test_all_of_a_set_in_batches():
    images = pictures(23, 0)
    assert torch.equal(torch.cat(list(image_batches(a_set(images), 5))), images)
    assert [len(batch) for batch in image_batches(a_set(images), 5)] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture(channels):
    images, samples = pictures(30, 0, channels), pictures(4, 1, channels)
    found = find_neighbours(samples, features(samples), a_set(images), features(images), rows=2, k=3)
    picture = neighbours_picture(found, a_set(images))
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    other = neighbours_picture(found, a_set(255 - images))
    assert picture.shape == other.shape
    assert not torch.equal(picture, other)  # it shows the set's images
