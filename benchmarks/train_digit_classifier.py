"""Train the digit classifier whose features `DigitFeatures` gives to the Fréchet distance.

    python benchmarks/train_digit_classifier.py --root <torchvision root> --output <file.safetensors>

60,000 training digits, slightly rotated, scaled and shifted; six epochs, about five minutes on two idle CPU cores.
Two losses are summed: cross-entropy, and the squared error of the digit rebuilt from the features by one linear map.
Under cross-entropy alone the features of a class are drawn together (Papyan et al. 2020, arXiv:2008.08186), and what a
digit looks like within its class counts for less: blurred by a 3 × 3 box, 1,000 test digits are then at distance 8.7
from the training digits instead of 13.3. The linear map is not saved. Weights are saved in half precision, and the
accuracy printed and recorded is theirs.

On cores that other programs use too, OMP_NUM_THREADS=1 is the faster: the threads wait for each other by spinning.
"""

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST
from tqdm import tqdm

from diffusion_lightning.metrics.features import DigitClassifier

RECONSTRUCTION = 1.0
MAX_ROTATION = math.radians(10)
MAX_SCALING = 0.1
MAX_SHIFT = 2 / 14  # two pixels: the grid's unit is half the image


def load(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """All digits, float32 (N, 1, 28, 28) in [-1, 1], and their labels (N,)."""
    mnist = MNIST(root, train=train, download=False)
    return mnist.data[:, None].float() / 127.5 - 1, mnist.targets


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, 1, 28, 28) rotated, scaled and shifted on its own, with background where it left the frame."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(len(x), *shape, generator=generator) - 1

    angle, scale, shift = MAX_ROTATION * uniform(), 1 + MAX_SCALING * uniform(), MAX_SHIFT * uniform(2, 1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([linear, shift], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # grid_sample pads with 0, the background is -1


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The fraction of images of which the greatest logit is at the label, in full precision."""
    model.eval()
    correct = [model(a).argmax(1) == b for a, b in zip(x.split(1_000), labels.split(1_000), strict=True)]
    return torch.cat(correct).float().mean().item()


def save(model: nn.Module, args: argparse.Namespace, x: Tensor, labels: Tensor) -> None:
    """Write the weights in half precision, with the accuracy that they then have on test digits."""
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    test_accuracy = accuracy(model, x, labels)
    metadata = {
        "test_accuracy": f"{test_accuracy:.4f}",
        "epochs": str(args.epochs),
        "seed": str(args.seed),
        "torch": torch.__version__,
        "data": "MNIST, 60,000 training digits",
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, args.output, metadata=metadata)
    print(f"test accuracy {test_accuracy:.2%}; {args.output}, {args.output.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="torchvision's data root: the folder that holds MNIST/"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)  # the initial weights
    generator = torch.Generator().manual_seed(args.seed)  # the order and the augmentation
    images, labels = load(args.root, train=True)
    test_images, test_labels = load(args.root, train=False)

    model = DigitClassifier().to(memory_format=torch.channels_last)
    decoder = nn.Linear(model.num_features, 28 * 28)
    parameters = [*model.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)

    with tqdm(total=steps, unit="step") as bar:
        for epoch in range(args.epochs):
            model.train()
            for index in torch.randperm(len(images), generator=generator).split(args.batch_size):
                x, y = augment(images[index], generator), labels[index]
                with torch.autocast("cpu", torch.bfloat16):
                    features = model.features(x)
                    logits, rebuilt = model.head(features), decoder(features)
                classification = F.cross_entropy(logits.float(), y)
                reconstruction = F.mse_loss(rebuilt.float(), x.flatten(1))
                optimizer.zero_grad()
                (classification + RECONSTRUCTION * reconstruction).backward()
                optimizer.step()
                scheduler.step()
                bar.update()
                bar.set_postfix(
                    epoch=epoch + 1, classification=classification.item(), reconstruction=reconstruction.item()
                )

    save(model, args, test_images, test_labels)


if __name__ == "__main__":
    main()
