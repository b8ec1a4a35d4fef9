"""Make the embedded digits again: the first 1,000 of each class of the MNIST training set, in their original order.

    python benchmarks/make_embedded_mnist.py --root <torchvision root>

The archive holds `images`, uint8 (10000, 28, 28), and `labels`, uint8 (10000,). The same MNIST gives the same arrays.
"""

import argparse
from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

PER_CLASS = 1_000
OUTPUT = Path(__file__).resolve().parents[1] / "diffusion_lightning" / "data" / "embedded" / "mnist_10k.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="torchvision's data root: the folder that holds MNIST/"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: the file in the package")
    args = parser.parse_args()

    mnist = MNIST(args.root, train=True, download=False)
    images, labels = mnist.data.numpy(), mnist.targets.numpy().astype(np.uint8)
    first = [np.flatnonzero(labels == digit)[:PER_CLASS] for digit in range(10)]
    index = np.sort(np.concatenate(first))

    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, images=images[index], labels=labels[index])
    print(f"{args.output}: {len(index):,} digits, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
