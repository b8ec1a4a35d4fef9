import math

import pytest
import torch
import torch.nn.functional as F

from diffusion_lightning import GeometricAugmentation
from diffusion_lightning.data.augmentation import Transformations

KINDS = ("upside_down", "scale", "rotation", "stretch", "shift")
BICUBIC = 0.02
"""How far torch's bicubic interpolation is from these humps of height 1."""


@pytest.fixture
def images():
    return torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1


def transformation(n=2, **numbers):
    """The same transformation for ``n`` images; what is not given is not done."""
    shift = torch.tensor(numbers.pop("shift", (0.0, 0.0)))
    flips = {name: torch.full((n,), numbers.pop(name, False)) for name in ("mirrored", "upside_down")}
    rest = {
        name: torch.full((n,), float(numbers.get(name, 0.0))) for name in ("scale", "rotation", "stretch", "direction")
    }
    return Transformations(**flips, **rest, shift=shift.expand(n, 2))


def drawn(n, probability=0.12, seed=0):
    return GeometricAugmentation(probability).draw(n, torch.Generator().manual_seed(seed))


def smooth(height, width, centre_x, centre_y, width_x, width_y, angle=0.0):
    """A Gaussian hump in pixels from the image's centre, its first axis turned counterclockwise by ``angle``."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    x, y = x - centre_x, y - centre_y
    along, across = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    return (-((along / width_x) ** 2) - (across / width_y) ** 2).exp()[None, None]


# ---- what each transformation does


def test_the_flips_are_exact(images):
    assert torch.equal(transformation(mirrored=True)(images), images.flip(-1))
    assert torch.equal(transformation(upside_down=True)(images), images.flip(-2))


def test_nothing_to_do_is_the_identity(images):
    assert torch.equal(transformation()(images), images)
    # a direction without a stretch does nothing either
    assert torch.equal(transformation(direction=1.0)(images), images)


@pytest.mark.parametrize("size", [(9, 9), (8, 8)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_by_right_angles_is_rot90(size, quarters):
    images = torch.rand(2, 3, *size)
    turned = transformation(rotation=quarters * math.pi / 2)(images)
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 9), (6, 10)])
@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, 2), (1, -3)])
def test_a_shift_by_whole_pixels_is_that_of_the_reflected_image(size, right, down):
    images = torch.rand(2, 3, *size)
    height, width = size
    padded = F.pad(images, (3, 3, 3, 3), mode="reflect")
    expected = padded[:, :, 3 - down : 3 - down + height, 3 - right : 3 - right + width]
    shifted = transformation(shift=(8 * right / width, 8 * down / height))(images)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-5)


def test_scaling_stretching_and_rotating_move_a_smooth_image_as_they_say():
    hump = smooth(65, 65, 4, 0, 5, 5)
    cases = {
        # 2^(w/5) times as large: w = 2.5 is √2
        "scale": (transformation(1, scale=2.5), smooth(65, 65, 4 * 2**0.5, 0, 5 * 2**0.5, 5 * 2**0.5)),
        "rotation": (
            transformation(1, rotation=0.5),
            smooth(65, 65, 4 * math.cos(0.5), -4 * math.sin(0.5), 5, 5),
        ),
        "stretch": (transformation(1, stretch=2.0), smooth(65, 65, 4 * 2**0.4, 0, 5 * 2**0.4, 5 / 2**0.4)),
    }
    for name, (change, expected) in cases.items():
        torch.testing.assert_close(
            change(hump), expected, rtol=0, atol=BICUBIC, msg=lambda m, name=name: f"{name}: {m}"
        )
    slanted = transformation(1, stretch=2.0, direction=0.6)(smooth(65, 65, 0, 0, 5, 5))
    torch.testing.assert_close(slanted, smooth(65, 65, 0, 0, 5 * 2**0.4, 5 / 2**0.4, 0.6), rtol=0, atol=BICUBIC)


def test_the_order_is_scaled_rotated_stretched_shifted():
    hump = smooth(65, 65, 4, 0, 6, 6)
    steps = {"scale": 1.0, "rotation": 0.8, "stretch": 2.0, "shift": (0.5, -0.3)}
    one_by_one = hump
    for name, number in steps.items():
        one_by_one = transformation(1, **{name: number})(one_by_one)
    torch.testing.assert_close(transformation(1, **steps)(hump), one_by_one, rtol=0, atol=2 * BICUBIC)
    backwards = hump
    for name, number in reversed(steps.items()):
        backwards = transformation(1, **{name: number})(backwards)
    assert (transformation(1, **steps)(hump) - backwards).abs().max() > 0.1


def test_each_image_gets_its_own(images):
    both = transformation(1, rotation=1.0), transformation(1, scale=1.0, shift=(1.0, 0.0))
    together = Transformations(*(torch.cat(numbers) for numbers in zip(*both, strict=True)))
    alone = torch.cat([change(images[i : i + 1]) for i, change in enumerate(both)])
    torch.testing.assert_close(together(images), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(images, dtype):
    change = transformation(rotation=1.0)
    result = change(images.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), change(images), rtol=0.02, atol=0.03)


def test_it_is_as_precise_under_autocast(images):
    change = drawn(2, probability=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = change(images)
    assert torch.equal(inside, change(images))


# ---- what the network is told


def test_the_labels_are_those_of_the_transformation():
    change = transformation(
        1, mirrored=True, upside_down=True, scale=0.5, rotation=2.0, stretch=-1.5, direction=0.7, shift=(0.3, -0.4)
    )
    expected = [1, 1, 0.5, math.cos(2) - 1, math.sin(2), -1.5 * math.cos(0.7), -1.5 * math.sin(0.7), 0.3, -0.4]
    torch.testing.assert_close(change.labels, torch.tensor([expected]), rtol=0, atol=1e-6)
    assert change.labels.shape[1] == GeometricAugmentation.dim


def test_labels_are_zero_exactly_where_the_image_is_as_it_was():
    images = torch.rand(400, 1, 8, 8)
    changed, labels = GeometricAugmentation(0.12)(images, seed=3)
    same = (changed == images).flatten(1).all(1)
    assert torch.equal(same, (labels == 0).all(1))
    assert 0 < same.sum() < 400


def test_what_is_told_is_what_was_done():
    images = torch.rand(64, 3, 8, 8)
    augmentation = GeometricAugmentation(0.5)
    changed, labels = augmentation(images, seed=1)
    done = augmentation.draw(64, torch.Generator().manual_seed(1))
    assert torch.equal(labels, done.labels)
    assert torch.equal(changed, done(images))


def test_at_probability_zero_nothing_happens(images):
    changed, labels = GeometricAugmentation(0.0)(images, seed=0)
    assert torch.equal(changed, images)
    assert torch.equal(labels, torch.zeros(2, 9))


# ---- how often, and how much


def test_each_kind_is_as_frequent_as_asked_for_and_independent_of_the_others():
    n, p = 100_000, 0.12
    change = drawn(n, p)
    done = {name: (getattr(change, name) != 0).reshape(n, -1).any(1) for name in (*KINDS, "mirrored")}
    expected = dict.fromkeys(KINDS, p) | {"upside_down": p / 2, "mirrored": 0.5}

    def check(happened, q):
        assert abs(happened.sum().item() - n * q) < 5 * math.sqrt(n * q * (1 - q))  # five standard deviations

    for name, q in expected.items():
        check(done[name], q)
        for other in list(expected)[: list(expected).index(name)]:
            check(done[name] & done[other], q * expected[other])
    stretched = done["stretch"]
    along = (change.direction[stretched] == 0).sum().item()
    assert abs(along - stretched.sum() / 2) < 5 * math.sqrt(stretched.sum() / 4)


def test_the_numbers_have_their_distributions():
    n = 50_000
    change = drawn(n, probability=1.0)
    for normal in (change.scale, change.stretch, *change.shift.unbind(1)):
        # five standard deviations of the mean and of the variance of n draws
        assert abs(normal.mean()) < 5 / math.sqrt(n)
        assert abs(normal.var() - 1) < 5 * math.sqrt(2 / n)
    for angles in (change.rotation, change.direction[change.direction != 0]):
        shares = torch.histc(angles, 8, -math.pi, math.pi) / len(angles)
        assert shares.sum() == pytest.approx(1, abs=1e-4)
        assert (shares - 1 / 8).abs().max() < 5 * math.sqrt(7 / 64 / len(angles))


# ---- who draws


def test_a_seed_gives_the_same_and_the_global_generator_is_left_alone():
    images, augmentation = torch.rand(16, 3, 8, 8), GeometricAugmentation(0.5)
    state = torch.get_rng_state()
    first, again, other = (augmentation(images, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_two_processes_do_what_one_with_twice_the_batch_does():
    images, augmentation = torch.rand(16, 3, 8, 8), GeometricAugmentation(0.5)
    whole = augmentation(images, seed=5)
    for rank in range(2):
        own = augmentation(images[rank::2], 5, rank, 2)
        assert all(torch.equal(part, of[rank::2]) for part, of in zip(own, whole, strict=True))


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_out_of_range_is_an_error(probability):
    with pytest.raises(ValueError, match=r"probability=.*: must be in \[0, 1\]"):
        GeometricAugmentation(probability)
