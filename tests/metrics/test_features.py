"""The feature extractors: what they were trained to see, what they must not depend on, and how they fail."""

import math
import subprocess
import sys
from http.client import IncompleteRead
from importlib.resources import files
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lightning import EmbeddedMNIST
from diffusion_lightning.metrics.features import (
    DIGIT_WEIGHTS,
    FEATURES,
    DigitFeatures,
    Feature,
    InceptionFeatures,
    auto_feature,
    build_features,
    fingerprint,
    published_feature,
    reads_classes,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The embedded digits, uint8 (10000, 1, 28, 28), and their labels."""
    path = files("diffusion_lightning.data").joinpath("embedded", "mnist_10k.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"]).long()


@pytest.fixture(scope="module")
def features() -> DigitFeatures:
    return DigitFeatures()


def take(features: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([features(batch) for batch in images.split(1_000)])


@pytest.fixture(scope="module")
def taken(features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> Tensor:
    """The features (10000, 128) of the embedded digits."""
    return take(features, digits[0])


@pytest.fixture(scope="module")
def halves(taken: Tensor, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The features of the first 8,000 digits, and the images of the last 2,000."""
    return taken[:8_000], digits[0][8_000:]


def frechet(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance between the Gaussians fitted to two sets of features, exactly, in float64."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def noisy(images: Tensor, std: float) -> Tensor:
    """Images with Gaussian noise of `std` in the scale [-1, 1], clipped and rounded to uint8."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return ((images / 127.5 - 1 + std * noise).clamp(-1, 1) * 127.5 + 127.5).round().byte()


def blurred(images: Tensor) -> Tensor:
    return F.conv2d(images.float(), torch.full((1, 1, 3, 3), 1 / 9), padding=1).round().byte()


class TestEmbeddedDigits:
    def test_a_thousand_of_each(self, digits: tuple[Tensor, Tensor]) -> None:
        images, labels = digits
        assert images.shape == (10_000, 1, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [1_000] * 10
        assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # MNIST's own beginning

    def test_no_image_twice(self, digits: tuple[Tensor, Tensor]) -> None:
        assert len(digits[0].unique(dim=0)) == 10_000


class TestDigitWeights:
    def test_small_enough_to_ship(self) -> None:
        assert DIGIT_WEIGHTS.stat().st_size < 2_000_000

    def test_metadata_records_the_training(self) -> None:
        with safe_open(DIGIT_WEIGHTS, framework="pt") as file:
            metadata = file.metadata()
        assert float(metadata["test_accuracy"]) >= 0.99
        assert int(metadata["epochs"]) > 0
        assert metadata["torch"]

    def test_they_read_digits(self, features: DigitFeatures, taken: Tensor, digits: tuple[Tensor, Tensor]) -> None:
        with torch.no_grad():
            logits = features.classifier.head(taken)
        assert logits.shape == (10_000, 10)
        assert (logits.argmax(1) == digits[1]).float().mean() >= 0.99

    def test_the_logits_follow_from_the_features(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        x = digits[0][:64] / 127.5 - 1
        with torch.no_grad():
            torch.testing.assert_close(
                features.classifier.head(features.classifier.features(x)), features.classifier(x)
            )


class TestDigitFeatures:
    def test_shape_and_type(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        out = features(digits[0][:5])
        assert out.shape == (5, features.num_features) == (5, 128)
        assert out.dtype == torch.float32

    def test_uint8_is_read_as_minus_one_to_one(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:64]
        x = 2 * (images.double() / 255) - 1
        assert (x.min(), x.max()) == (-1, 1)
        torch.testing.assert_close(features(images), features.classifier.features(x.float()), rtol=1e-4, atol=1e-4)

    def test_no_feature_dominates_or_is_dead(self, taken: Tensor) -> None:
        z = taken.double()
        assert z.mean(0).abs().max() < 0.2
        assert z.std(0).min() > 0.8
        assert z.std(0).max() < 1.2
        # A Gaussian's is 3; a feature that is zero but for a few images has tens.
        kurtosis = ((z - z.mean(0)) / z.std(0)).pow(4).mean(0)
        assert kurtosis.max() < 6

    def test_covariance_is_more_than_the_classes(self, taken: Tensor) -> None:
        values = torch.linalg.eigvalsh(torch.cov(taken.double().T))
        assert values.min() > 1e-4
        # Collapsed onto ten class means the features would have nine directions, and this number is at most nine.
        assert values.sum() ** 2 / values.square().sum() > 9.5

    def test_rgb_of_gray_is_gray(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:64]
        torch.testing.assert_close(features(images.expand(-1, 3, -1, -1)), features(images), rtol=1e-4, atol=1e-4)

    def test_colour_has_the_brightness_of_the_eye(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:64]
        for channel, luma in enumerate((0.299, 0.587, 0.114)):
            colour = torch.zeros(64, 3, 28, 28, dtype=torch.uint8)
            colour[:, channel] = images[:, 0]
            expected = features.classifier.features(luma * images / 127.5 - 1)
            torch.testing.assert_close(features(colour), expected, rtol=1e-4, atol=1e-4)

    def test_an_enlarged_digit_is_the_digit(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:1_000]
        exact = features(images)
        # 28 pixels repeated three times each come back nearly exactly: the antialias filter is wider than one pixel.
        large = images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
        assert (features(large) - exact).square().mean() < 0.2 * exact.square().mean()
        padded = F.pad(images, (2, 2, 2, 2))  # 32 × 32, a usual size: smaller strokes, still the same digit
        agree = [features.classifier.head(features(x)).argmax(1) for x in (images, large, padded)]
        assert (agree[0] == agree[1]).float().mean() > 0.98
        assert (agree[0] == agree[2]).float().mean() > 0.95

    def test_shrinking_averages(self, features: DigitFeatures) -> None:
        fine = torch.zeros(1, 1, 112, 112, dtype=torch.uint8)
        fine[..., 3::4] = 255  # every fourth column: between the samples, were none but the four nearest pixels read
        dark, gray = torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.full((1, 1, 28, 28), 64, dtype=torch.uint8)
        to_gray, to_dark = [(features(fine) - features(plain)).norm() for plain in (gray, dark)]
        assert to_gray < 0.2 * to_dark

    def test_stays_in_evaluation_without_gradients(self, digits: tuple[Tensor, Tensor]) -> None:
        features, images = DigitFeatures(), digits[0][:8]
        before, expected = fingerprint(features), features(images)
        assert features.train() is features
        nn.Sequential(features).train()  # as a parent does it
        assert not any(module.training for module in features.modules())
        assert not any(parameter.requires_grad for parameter in features.parameters())
        torch.testing.assert_close(features(images), expected, rtol=0, atol=0)
        assert not features.requires_grad_(True)(images).requires_grad  # as unfreezing a parent does it
        assert fingerprint(features) == before, "batch statistics moved"

    def test_one_image_is_as_in_a_batch(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:8]
        single = torch.cat([features(image[None]) for image in images])
        torch.testing.assert_close(single, features(images), rtol=1e-4, atol=1e-4)

    def test_autocast_does_not_reach_it(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:64]
        expected = features(images)
        with torch.autocast("cpu", torch.bfloat16):
            out = features(images)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, rtol=0, atol=0)

    def test_float32_though_built_in_half(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        torch.set_default_dtype(torch.bfloat16)  # what Lightning's bf16-true does around each hook
        try:
            out = DigitFeatures()(digits[0][:8])
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(out, features(digits[0][:8]), rtol=1e-5, atol=1e-5)

    def test_logits_are_those_of_the_classifier(self, features: DigitFeatures, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:64]
        torch.testing.assert_close(features.logits(features(images)), features.classifier(images / 127.5 - 1))
        assert not features.logits(features(images)).requires_grad

    def test_refuses_other_images(self, features: DigitFeatures) -> None:
        with pytest.raises(TypeError, match=r"uint8.*float32"):
            features(torch.zeros(2, 1, 28, 28))
        with pytest.raises(ValueError, match=r"\(2, 4, 28, 28\)"):
            features(torch.zeros(2, 4, 28, 28, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"\(2, 28, 28\)"):
            features(torch.zeros(2, 28, 28, dtype=torch.uint8))


class TestFrechetDistance:
    """What the features are for: the distance is small between halves of the digits, and grows with every fault."""

    def test_grows_with_noise(self, features: DigitFeatures, halves: tuple[Tensor, Tensor]) -> None:
        reference, images = halves
        real, *worse = [frechet(reference, take(features, noisy(images, std))) for std in (0.0, 0.1, 0.3, 1.0)]
        assert 2 * real < worse[0] < worse[1] < worse[2]
        noise_only = noisy(torch.full_like(images, 128), 1.0)
        assert worse[2] < frechet(reference, take(features, noise_only))

    def test_sees_blur(self, features: DigitFeatures, halves: tuple[Tensor, Tensor]) -> None:
        reference, images = halves
        once, twice = blurred(images), blurred(blurred(images))
        real, blur, more = [frechet(reference, take(features, x)) for x in (images, once, twice)]
        assert 2 * real < blur < more

    def test_sees_missing_classes(
        self, features: DigitFeatures, halves: tuple[Tensor, Tensor], digits: tuple[Tensor, Tensor]
    ) -> None:
        reference, images = halves
        labels = digits[1][8_000:]
        some, few = take(features, images[labels < 5]), take(features, images[labels < 2])
        real = frechet(reference, take(features, images))
        assert 2 * real < frechet(reference, some) < frechet(reference, few)

    def test_sees_a_lack_of_variety_within_the_classes(self, taken: Tensor, digits: tuple[Tensor, Tensor]) -> None:
        z, labels = taken[8_000:], digits[1][8_000:]
        means = torch.stack([z[labels == digit].mean(0) for digit in range(10)])
        # Every digit drawn towards the mean of its class: the right classes, in the right numbers.
        drawn = means[labels] + 0.5 * (z - means[labels])
        assert frechet(taken[:8_000], drawn) > 2 * frechet(taken[:8_000], z)

    def test_no_distance_to_itself(self, halves: tuple[Tensor, Tensor]) -> None:
        assert math.isclose(frechet(halves[0], halves[0]), 0, abs_tol=1e-6)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of random weights, as torch-fidelity's would be: the true one is too large for a test."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        torch.save(InceptionFeatures().inception.state_dict(), path)
    return str(path)


class TestInceptionFeatures:
    def test_features(self, inception_file: str, digits: tuple[Tensor, Tensor]) -> None:
        features, gray = InceptionFeatures(inception_file), digits[0][:3]
        assert features.num_features == 2048
        features.train()
        assert not any(module.training for module in features.modules())
        assert not any(parameter.requires_grad for parameter in features.parameters())
        out = features(gray)
        assert out.shape == (3, 2048)
        assert out.dtype == torch.float32
        assert not out.requires_grad
        assert (out[0] - out[1]).abs().max() > 0
        torch.testing.assert_close(features(gray.repeat(1, 3, 1, 1)), out, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(features(gray), out, rtol=0, atol=0)
        with pytest.raises(TypeError, match="uint8"):
            features(gray.float())

    def test_logits_are_those_without_bias(self, inception_file: str, digits: tuple[Tensor, Tensor]) -> None:
        from torchmetrics.image.fid import NoTrainInceptionV3

        features, images = InceptionFeatures(inception_file), digits[0][:3].repeat(1, 3, 1, 1)
        published = NoTrainInceptionV3("inception-v3-compat", ["logits_unbiased"], inception_file)
        with torch.no_grad():
            torch.testing.assert_close(features.logits(features(images)), published(images))

    def test_resizing_as_in_tensorflow_1(self, inception_file: str, digits: tuple[Tensor, Tensor]) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        images = digits[0][:3].repeat(1, 3, 1, 1)
        original = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], inception_file)
        antialiased, as_before = InceptionFeatures(inception_file), InceptionFeatures(inception_file, antialias=False)
        with torch.no_grad():
            torch.testing.assert_close(as_before(images), original(images)[0], rtol=1e-5, atol=0)
        # random weights make small features
        assert not torch.allclose(as_before(images), antialiased(images), rtol=1e-3, atol=0)
        assert fingerprint(as_before) != fingerprint(antialiased)

    def test_missing_file(self) -> None:
        with pytest.raises(FileNotFoundError) as error:
            InceptionFeatures("no/such/weights.pth")
        assert "feature_weights" in str(error.value)
        assert "no/such/weights.pth" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "failure",
        [
            URLError("Name or service not known"),
            HTTPError("https://github.com", 403, "Forbidden", None, None),  # type: ignore[arg-type]
            TimeoutError("timed out"),
            IncompleteRead(b""),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_no_network(self, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise failure

        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", fail)
        with pytest.raises(OSError, match="could not be downloaded") as error:
            InceptionFeatures()
        message = str(error.value)
        assert "feature_weights" in message
        assert "weights-inception-2015-12-05-6726825d.pth" in message
        assert "for pictures of digits alone, feature=digits" in message
        assert "\n" not in message
        assert error.value.__cause__ is failure


class TestFingerprint:
    def test_same_weights_same_name(self) -> None:
        assert fingerprint(DigitFeatures()) == fingerprint(DigitFeatures())
        assert len(fingerprint(DigitFeatures())) == 16
        int(fingerprint(DigitFeatures()), 16)

    @pytest.mark.parametrize("name", ["classifier.head.1.bias", "classifier.body.6.running_mean"])
    def test_one_weight_changes_it(self, name: str) -> None:
        features = DigitFeatures()
        before = fingerprint(features)
        features.state_dict()[name].view(-1)[0] += 1e-3
        assert fingerprint(features) != before

    def test_order_of_registration_does_not(self) -> None:
        def module(names: list[str]) -> nn.Module:
            made = nn.Module()
            for name in names:
                made.register_buffer(name, torch.full((2,), float(ord(name))))
            return made

        assert fingerprint(module(["a", "b"])) == fingerprint(module(["b", "a"]))

    def test_class_structure_type_and_shape_count(self) -> None:
        class Other(nn.Identity):
            pass

        class Constant(nn.Module):
            def __init__(self, value: Tensor) -> None:
                super().__init__()
                self.register_buffer("value", value)

        zeros = torch.zeros(4)
        modules = [
            nn.Identity(),
            Other(),
            nn.Sequential(nn.ReLU()),
            nn.Sequential(nn.GELU()),
            Constant(zeros),
            Constant(zeros.view(2, 2)),
            Constant(zeros.int()),
            Constant(zeros.bfloat16()),
            Constant(torch.tensor(0.0)),
        ]
        assert len({fingerprint(module) for module in modules}) == len(modules)


# ---- the table


class Patches(nn.Module):
    """A feature network of one's own."""


def test_features_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name, features = build_features("mnist")
    assert name == "mnist"
    assert isinstance(features, DigitFeatures)
    own = Patches()
    assert build_features(own) == ("patches", own)
    monkeypatch.setattr(
        "diffusion_lightning.metrics.features.InceptionFeatures", lambda weights, **more: ("made", weights, more)
    )
    assert build_features("inception", "file.pth") == ("inception", ("made", "file.pth", {}))
    assert build_features("inception_tf1", "f") == ("inception_tf1", ("made", "f", {"antialias": False}))


def test_wrong_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"feature='imagenet': must be 'auto', 'inception', 'inception_tf1', 'mnist', 'digits' or a module",
    ):
        build_features("imagenet")
    with pytest.raises(
        ValueError, match=r"feature_weights='w\.pth': only 'inception' and 'inception_tf1' take weights"
    ):
        build_features("mnist", "w.pth")


def test_the_table_says_what_is_so() -> None:
    assert FEATURES["mnist"].num_features == DigitFeatures.num_features
    assert FEATURES["mnist"].classes == tuple(EmbeddedMNIST.class_names or ())
    assert FEATURES["inception"].num_features == FEATURES["inception_tf1"].num_features
    assert FEATURES["inception"].num_features == InceptionFeatures.num_features


def test_the_shape_chooses_the_features_and_their_number_those_of_published_statistics() -> None:
    assert auto_feature((1, 28, 28)) == "digits"
    assert auto_feature((3, 28, 28)) == auto_feature((1, 32, 32)) == "inception"
    assert published_feature(128) == "mnist"
    assert published_feature(2048) == "inception_tf1"
    assert published_feature(7) is None


@pytest.mark.parametrize(
    ("feature", "names", "num_classes", "expected"),
    [
        *(("mnist", list("0123456789"), number, True) for number in (10, None, 0)),
        ("mnist", list("0123456789"), 11, False),
        ("mnist", list("9876543210"), 10, False),
        ("mnist", list("012345678"), 9, False),
        ("mnist", None, 10, False),
        ("inception", list("0123456789"), 10, False),
        ("inception_tf1", None, None, False),
        (DigitFeatures(), list("0123456789"), 10, False),
    ],
)
def test_which_features_are_of_a_classifier_of_the_datas_classes(feature, names, num_classes, expected) -> None:
    assert reads_classes(feature, names, num_classes) is expected


def test_a_new_entry_is_chosen_by_name_shape_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Feature(lambda weights: Patches(), 9, suits=(2, 5, 5), is_published=True)
    monkeypatch.setitem(FEATURES, "patches_of_5", entry)
    assert isinstance(build_features("patches_of_5")[1], Patches)
    assert auto_feature((2, 5, 5)) == published_feature(9) == "patches_of_5"
    with pytest.raises(
        ValueError, match="must be 'auto', 'inception', 'inception_tf1', 'mnist', 'digits', 'patches_of_5' or"
    ):
        build_features("other")


def test_names_and_the_metrics_that_they_allow_are_known_without_what_computes_them() -> None:
    code = """
import sys
import diffusion_lightning.metrics.evaluation, diffusion_lightning.metrics.features
import diffusion_lightning.metrics.neighbours, diffusion_lightning.metrics.reference
heavy = {"lightning", "torchmetrics", "torch_fidelity", "torchvision", "matplotlib"} & set(sys.modules)
sys.exit(f"loaded as well: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
