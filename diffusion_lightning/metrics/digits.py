"""Features of handwritten digits by small networks that come with the package; `DigitJudge` minds what is no digit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lightning.floats import exact_float32

JUDGE_WEIGHTS = Path(__file__).parent / "weights" / "digit_judge.safetensors"


class DigitJudge(nn.Module):
    """A convolutional network of 28×28 digits that was trained to read them, and to tell how they were broken, if so.

    The last convolution is flattened rather than pooled, so that where a stroke lies still matters. Features are
    bounded, so that a picture that is no digit at all counts once, not a thousandfold, and then scaled: over the real
    training digits each has mean 0 and variance 1. What real digits hardly vary in, for they are whole, is thereby
    what a broken one is far away in.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.body = nn.Sequential(
            block(1, 32, 4, 2),  # 14 × 14
            block(32, 64, 3, 1),
            block(64, 64, 4, 2),  # 7 × 7
            block(64, 56, 3, 1),
            nn.Flatten(),
            nn.Linear(56 * 7 * 7, self.num_features, bias=False),
            nn.BatchNorm1d(self.num_features),
            nn.Tanh(),
        )
        self.standard = nn.BatchNorm1d(self.num_features, affine=False)  # its moments are set after training
        self.head = nn.Sequential(nn.Linear(self.num_features, 64), nn.GELU(), nn.Linear(64, 10))

    def features(self, x: Tensor) -> Tensor:
        """The features (N, 128) of float images (N, 1, 28, 28) in [-1, 1]."""
        return self.standard(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, 10) of float images (N, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(x))


def check_images(images: Tensor) -> None:
    """Refuses what no feature network is called on.

    Raises:
        TypeError: when the images are not uint8.
        ValueError: when they are not (N, 1 or 3, H, W).
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"features are taken of uint8 images in 0..255, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"features are taken of images (N, 1 or 3, H, W), got {tuple(images.shape)}")


class FeaturesOfDigits(nn.Module):
    """The features of a classifier of digits, for the Fréchet distance between sets of them.

    Called on uint8 images (N, C, H, W) in 0..255, C 1 or 3, it returns float32 (N, F). RGB becomes gray by the luma
    of ITU-R BT.601, and any size becomes 28 × 28 by antialiased bilinear interpolation. It has no gradients, never
    leaves evaluation mode, and computes in float32 under autocast too, and without TF32: the error of bfloat16 would be
    added to the distance.

    Args:
        classifier: has ``features(x)`` of float images (N, 1, 28, 28) in [-1, 1], and a ``head`` that makes logits of
            them.
        weights: file of its weights.

    Raises:
        TypeError: when called on images that are not uint8.
        ValueError: when they have another number of dimensions or channels.
    """

    def __init__(self, classifier: nn.Module, weights: Path) -> None:
        super().__init__()
        # Lightning's true half precision builds every module in half: these weights are float32 whatever the default.
        self.classifier = classifier.float()
        self.classifier.load_state_dict(load_file(weights))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeaturesOfDigits":
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    @torch.no_grad()
    @exact_float32()
    def logits(self, features: Tensor) -> Tensor:
        """The classifier's logits (N, 10) from its features (N, F)."""
        return self.classifier.head(features)  # type: ignore[operator]

    @torch.no_grad()
    @exact_float32()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        with torch.autocast(images.device.type, enabled=False):
            x = images.float()
            if x.shape[1] == 3:
                x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
            if x.shape[2:] != (28, 28):
                x = F.interpolate(x, size=(28, 28), mode="bilinear", antialias=True)
            return self.classifier.features(x / 127.5 - 1)  # type: ignore[operator]


class JudgedDigitFeatures(FeaturesOfDigits):
    """The 128 features of the shipped `DigitJudge`: those called ``digits``."""

    num_features: int = DigitJudge.num_features

    def __init__(self) -> None:
        super().__init__(DigitJudge(), JUDGE_WEIGHTS)
