"""Train the network whose features `JudgedDigitFeatures` gives to the Fréchet distance: ``digits``.

    python benchmarks/train_digit_judge.py --root <torchvision root> --output <file.safetensors>

60,000 training digits, most of them slightly rotated, scaled and shifted, and as many broken ones (``breakage.py``).
Three losses are summed: cross-entropy of the class, of the real ones; cross-entropy of the way a digit was broken, one
of which is not at all; and the squared error of the real digit rebuilt from the features by one linear map, without
which what a digit looks like within its class would be lost. Only class and features are saved.

Real and broken ones alike are made a little thicker or thinner, blurred, brighter or darker, and noisy: these are no
fault of a digit's strokes. Without that, the network tells samples from digits by grays that nobody sees: guided
samples were then further away than those of no class, which the eye finds much worse.

Weights are saved in half precision, and the accuracy printed and recorded is theirs. Six epochs, about six minutes of
one core with bf16 units.
"""

import argparse
import math
from pathlib import Path

import torch
from breakage import WAYS, broken, uniform
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from train_digit_classifier import augment, load, save

from diffusion_lightning.metrics.digits import DigitJudge

UNTOUCHED = 0.3
"""The share of digits that are neither rotated nor scaled nor shifted: such ones are judged."""


def some(x: Tensor, generator: torch.Generator) -> Tensor:
    """1 for half of the images, drawn at random, 0 for the others: (N, 1, 1, 1)."""
    return (torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5).float()


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Most images (N, 1, 28, 28) in [0, 1] rotated, scaled and shifted, each on its own."""
    stay = torch.rand(len(x), 1, 1, 1, generator=generator) < UNTOUCHED
    return torch.where(stay, x, (augment(2 * x - 1, generator) + 1) / 2)


def altered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 1, 28, 28) in [0, 1] with what is no fault of their strokes, each of it in half of them."""

    def amount(low: float, high: float) -> Tensor:
        return some(x, generator) * uniform(low, high, (len(x), 1, 1, 1), generator)

    thickness = amount(-0.5, 0.5)
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    x = x + thickness.clamp(min=0) * (thick - x) + (-thickness).clamp(min=0) * (thin - x)
    x = x + amount(0, 0.7) * (F.avg_pool2d(x, 3, 1, 1) - x)
    x = x.clamp(0, 1) ** (1 + amount(-0.4, 0.6)) * (1 + amount(-0.15, 0.4))
    noise = amount(0, 0.06) * torch.randn(x.shape, generator=generator)
    return (x + noise + amount(-0.03, 0.03)).clamp(0, 1)


@torch.no_grad()
def standardize(model: DigitJudge, x: Tensor) -> None:
    """Scale the features to mean 0 and variance 1 over images `x`; the head undoes it, and its logits stay."""
    model.eval()
    bounded = torch.cat([model.body(batch) for batch in x.split(1_000)]).double()
    mean, variance = bounded.mean(0), bounded.var(0)
    model.standard.running_mean.copy_(mean)
    model.standard.running_var.copy_(variance)
    first = model.head[0]
    first.bias += (first.weight.double() @ mean).float()
    first.weight *= (variance + model.standard.eps).sqrt().float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="torchvision's data root: the folder that holds MNIST/"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=250, help="real ones, and as many broken ones")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)  # the initial weights
    generator = torch.Generator().manual_seed(args.seed)  # the order, and what is done to the digits
    images, labels = load(args.root, train=True)
    test_images, test_labels = load(args.root, train=False)

    model = DigitJudge().to(memory_format=torch.channels_last)
    ways = nn.Sequential(nn.Linear(model.num_features, 64), nn.GELU(), nn.Linear(64, len(WAYS) + 1))  # 0: not broken
    decoder = nn.Linear(model.num_features, 28 * 28)
    parameters = [*model.parameters(), *ways.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=steps)

    with tqdm(total=steps, unit="step") as bar:
        for epoch in range(args.epochs):
            model.train()
            for index in torch.randperm(len(images), generator=generator).split(args.batch_size):
                real = moved((images[index] + 1) / 2, generator)
                others = torch.randint(len(images), (len(index),), generator=generator)
                faulty, way = broken(moved((images[others] + 1) / 2, generator), generator)
                x = 2 * altered(torch.cat([real, faulty]), generator) - 1
                target = torch.cat([torch.zeros_like(way), way])
                with torch.autocast("cpu", torch.bfloat16):
                    features = model.body(x)  # not scaled yet
                    of_real = features[: len(index)]
                    logits, found, rebuilt = model.head(of_real), ways(features), decoder(of_real)
                classification = F.cross_entropy(logits.float(), labels[index])
                judgement = F.cross_entropy(found.float(), target)
                reconstruction = F.mse_loss(rebuilt.float(), x[: len(index)].flatten(1))
                optimizer.zero_grad()
                (classification + judgement + reconstruction).backward()
                optimizer.step()
                scheduler.step()
                bar.update()
                losses = {"classification": classification, "judgement": judgement, "reconstruction": reconstruction}
                bar.set_postfix(epoch=epoch + 1, **{name: loss.item() for name, loss in losses.items()})

    standardize(model, images)
    save(model, args, test_images, test_labels)


if __name__ == "__main__":
    main()
