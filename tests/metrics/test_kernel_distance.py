"""The kernel distance by all pairs: the library's where its one subset is all, and the features of the real images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_lightning.metrics import kernel_distance as module
from diffusion_lightning.metrics.evaluation import kernel_distance
from diffusion_lightning.metrics.kernel_distance import KernelDistance, some_real_features
from diffusion_lightning.randomness import draw_some


def normal(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_librarys_of_one_subset_of_all(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    real, fake = normal(40, 0), normal(40, 1, shift=0.4)
    expected = kernel_distance(fake, real, subsets=1, subset_size=40)[0]
    assert KernelDistance(real)(fake) == pytest.approx(expected, rel=1e-9)


def test_of_unequally_many_it_is_what_the_formula_says():
    real, fake = normal(9, 0), normal(5, 1, shift=0.4)

    def mean(x: Tensor, y: Tensor) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if x is not y or i != j]
        return sum(((x[i] @ y[j]).item() / 6 + 1) ** 3 for i, j in pairs) / len(pairs)

    exact = mean(fake, fake) + mean(real, real) - 2 * mean(fake, real)
    assert KernelDistance(real)(fake) == pytest.approx(exact, rel=1e-5)


def test_it_expects_nothing_of_samples_like_the_real_ones():
    distance = KernelDistance(normal(2000, 0))
    found = torch.tensor([distance(normal(50, seed)) for seed in range(1, 101)])
    assert abs(found.mean().item()) < 3 * found.std().item() / 10
    assert distance(normal(50, 1, shift=0.5)) > 5 * found.std().item()


def test_the_real_images_are_the_same_for_every_seed_and_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REAL", 5)
    images, asked = torch.arange(12.0).view(12, 1), []

    def read(parts):
        asked.extend(parts)
        return (images[part] for part in parts)

    expected = 10 * images[draw_some(5, 12, seed=0).sort().values]
    path: Path = tmp_path / "features" / "those.safetensors"
    for _ in range(2):
        found = some_real_features(12, read, lambda batch: 10 * batch, path)
        assert torch.equal(found, expected)
    assert len(asked) == 1
    path.write_bytes(path.read_bytes()[:-3])
    assert torch.equal(some_real_features(12, read, lambda batch: 10 * batch, path), expected)
    assert len(asked) == 2
