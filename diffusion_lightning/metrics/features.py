"""Feature extractors for the Fréchet distance: what an image is reduced to before two sets of images are compared.

The Fréchet distance of Heusel et al. 2017 (arXiv:1706.08500) fits one Gaussian to the features of each set,

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½),

so it says no more than its features do. Three extractors are offered, all called on uint8 images (N, C, H, W):

- `InceptionFeatures`, the 2048 features in which published FID values are stated; its weights (95 MB) are downloaded.
- `JudgedDigitFeatures`, 128 features of a small network that was trained to read digits, and to mind broken ones; its
  weights ship with the package: for MNIST, where Inception is slow and knows nothing of digits, and for machines
  without a network.
- `DigitFeatures`, 128 features of a classifier, which came before: it hardly minds a digit that is none.

Distances in different features are not comparable; `fingerprint` tells them apart in a cache. `FEATURES` is the one
table of their names: what options of commands and callbacks take, and what results and reference files say.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from diffusion_lightning.floats import exact_float32
from diffusion_lightning.metrics.digits import FeaturesOfDigits, JudgedDigitFeatures, check_images

DIGIT_WEIGHTS = Path(__file__).parent / "weights" / "digit_classifier.safetensors"


class DigitClassifier(nn.Module):
    """A convolutional classifier of 28×28 digits, made to give Fréchet features.

    The features are the input of the last nonlinearity, normalized by a `BatchNorm1d` without gain and offset: over
    the training digits each has about mean 0 and variance 1, so none dominates a distance by its scale, and none is a
    spike at zero, as it would be after a ReLU. The last convolution is flattened rather than pooled, so that where a
    stroke lies still matters.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.GELU())

        self.body = nn.Sequential(
            block(1, 32, 3, 1),  # 28 × 28
            block(32, 64, 4, 2),  # 14 × 14
            block(64, 64, 3, 1),
            block(64, 64, 4, 2),  # 7 × 7
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, self.num_features, bias=False),
            nn.BatchNorm1d(self.num_features, affine=False),
        )
        self.head = nn.Sequential(nn.GELU(), nn.Linear(self.num_features, 10))

    def features(self, x: Tensor) -> Tensor:
        """The features (N, 128) of float images (N, 1, 28, 28) in [-1, 1]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, 10) of float images (N, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(x))


class DigitFeatures(FeaturesOfDigits):
    """The 128 features of the shipped `DigitClassifier`: those called ``mnist``."""

    num_features: int = DigitClassifier.num_features

    def __init__(self) -> None:
        super().__init__(DigitClassifier(), DIGIT_WEIGHTS)


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the Inception network of the original FID, as in torchmetrics and torch-fidelity.

    Called on uint8 images (N, C, H, W) in 0..255, C 1 or 3, it returns float32 (N, 2048); gray is repeated to RGB, and
    the network resizes to 299 × 299, either by antialiased bilinear interpolation, as torchmetrics does, or as
    TensorFlow 1 did, as nearly all published statistics were made; distances in one do not compare with the other's.
    It has no gradients, never leaves evaluation mode, and computes in float32 as `DigitFeatures` does.

    Args:
        weights: a local copy of torch-fidelity's weights; None downloads them into torch.hub's cache, once: of several
            processes one does, and the others wait for it.
        antialias: whether resizing is antialiased; else it is TensorFlow 1's, whose pixels' corners, not centres, are
            aligned.

    Raises:
        FileNotFoundError: when there is no file `weights`.
        OSError: when the weights could not be downloaded.
        TypeError, ValueError: when called, as `DigitFeatures`.
    """

    num_features: int = 2048

    def __init__(self, weights: str | None = None, antialias: bool = True) -> None:
        super().__init__()
        # Imported here, for torchmetrics takes seconds and the digits' features do without it.
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        from torchmetrics.image.fid import NoTrainInceptionV3

        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"feature_weights: there is no file {weights}")
        try:
            with nullcontext() if weights is not None else _one_download(URL_INCEPTION_V3):
                self.inception = NoTrainInceptionV3(
                    "inception-v3-compat", [str(self.num_features)], weights, antialias=antialias
                )
        except (OSError, HTTPException) as error:  # urllib's URLError is an OSError
            if weights is not None:
                raise
            raise OSError(
                f"the Inception weights could not be downloaded ({error}): give feature_weights, a local copy of "
                f"{URL_INCEPTION_V3.rsplit('/', 1)[1]}, or, for pictures of digits alone, feature=digits"
            ) from error

    def train(self, mode: bool = True) -> "InceptionFeatures":
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    def extra_repr(self) -> str:
        """The resizing is part of the fingerprint; the antialiased one keeps the name it has always had."""
        return "" if self.inception.use_antialias else "antialias=False"

    @torch.no_grad()
    @exact_float32()
    def logits(self, features: Tensor) -> Tensor:
        """The network's logits (N, 1008) from its features (N, 2048), without the bias, as published scores have it."""
        return features @ self.inception.fc.weight.T

    @torch.no_grad()
    @exact_float32()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.inception(images.expand(-1, 3, -1, -1))


@contextmanager
def _one_download(url: str) -> Iterator[None]:
    """Inside, no other process that shares torch.hub's cache downloads this: each waits until it can look again.

    The lock is one of the system, which frees it whenever the process that has it ends.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if file.is_file():  # whole: torch.hub moves it there when it is
        yield
        return
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock")
    with suppress(NotImplementedError):  # a file system that knows no locks: each downloads for itself
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Feature:
    """What is known of a feature network by its name alone.

    Attributes:
        build: makes the network, given a local file of its weights or None.
        num_features: F, how many features an image has.
        takes_weights: whether its weights are downloaded, or a local file of them, and do not come with the package.
        suits: the shape (C, H, W) of examples that get these features where none are named.
        before: the features that such examples got in earlier versions; a run that was begun in them goes on in them.
        is_published: whether statistics of F features, which do not say of which network, are taken to be of this one.
        classes: the names of the classes that its ``logits(features)`` are of, if data can have those very classes.
    """

    build: Callable[[str | None], nn.Module]
    num_features: int
    takes_weights: bool = False
    suits: tuple[int, int, int] | None = None
    before: str | None = None
    is_published: bool = False
    classes: tuple[str, ...] | None = None


FEATURES = {
    "inception": Feature(lambda weights: InceptionFeatures(weights), 2048, takes_weights=True),
    "inception_tf1": Feature(
        lambda weights: InceptionFeatures(weights, antialias=False), 2048, takes_weights=True, is_published=True
    ),
    "mnist": Feature(lambda weights: DigitFeatures(), 128, is_published=True, classes=tuple("0123456789")),
    "digits": Feature(
        lambda weights: JudgedDigitFeatures(), 128, suits=(1, 28, 28), before="mnist", classes=tuple("0123456789")
    ),
}
"""All feature networks by their names. A new one is one more entry here, and nothing else."""

ANY_SHAPE = "inception"
"""The features of examples whose shape no entry suits."""

if TYPE_CHECKING:
    FeatureName: TypeAlias = str
    FeatureChoice: TypeAlias = str
else:  # what the command line reads as the names that there are
    FeatureName = Literal[tuple(FEATURES)]
    FeatureChoice = Literal[("auto", *FEATURES)]


def auto_feature(shape: tuple[int, ...]) -> FeatureName:
    """The features called ``"auto"``: those that suit examples of a shape, where nobody knows better."""
    return next((name for name, feature in FEATURES.items() if feature.suits == tuple(shape)), ANY_SHAPE)


def published_feature(num_features: int) -> FeatureName | None:
    """The network of which published statistics of so many features are, None if there is none."""
    names = (name for name, each in FEATURES.items() if each.is_published and each.num_features == num_features)
    return next(names, None)


def reads_classes(feature: FeatureName | nn.Module, class_names: Sequence[str] | None, num_classes: int | None) -> bool:
    """Whether the classes that a feature network tells apart are those of a model's samples.

    Args:
        feature: a name in `FEATURES`; of a module it is not known.
        class_names: of the data that the model was trained on, None if they have none.
        num_classes: how many the model is told of; None or 0 if it has no classes.
    """
    classes = None if isinstance(feature, nn.Module) else FEATURES[feature].classes
    return classes is not None and classes == tuple(class_names or ()) and num_classes in (None, 0, len(classes))


def build_features(feature: FeatureName | nn.Module, weights: str | None = None) -> tuple[str, nn.Module]:
    """The feature network and the name that results carry.

    Args:
        feature: a name in `FEATURES`, or a module: uint8 images ``(B, C, H, W)`` → features ``(B, F)``.
        weights: local file of the network's weights; downloaded if left out.

    Raises:
        ValueError: for another name, or weights given for a network that has its own.
        OSError: if the weights cannot be read or downloaded.
    """
    if isinstance(feature, nn.Module):
        return type(feature).__name__.lower(), feature
    if feature not in FEATURES:
        names = ", ".join(map(repr, ("auto", *FEATURES)))
        raise ValueError(f"feature={feature!r}: must be {names} or a module")
    if weights is not None and not FEATURES[feature].takes_weights:
        names = " and ".join(repr(name) for name, each in FEATURES.items() if each.takes_weights)
        raise ValueError(
            f"feature_weights={weights!r}: only {names} take weights, not feature={feature!r}: leave it out"
        )
    return feature, FEATURES[feature].build(weights)


def extract_features(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """The features (N, F), on the CPU, of uint8 images in batches (B, C, H, W), each moved to the network's device."""
    tensor = next(iter(network.state_dict().values()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    return torch.cat([network(batch.to(device)).cpu() for batch in batches])


def fingerprint(module: nn.Module) -> str:
    """A name for what `module` computes, 16 hexadecimal digits, to key a cache of its features.

    It is the start of the SHA-256 of the module's class, its printed structure (layers without weights count too) and
    the bytes of its state dict, in the order of the names. It does not depend on the device.
    """
    digest = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
