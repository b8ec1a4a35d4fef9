import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_lightning.home import default_cache
from diffusion_lightning.metrics.fid import ReferenceFID


class Patches(nn.Module):
    """Nine sums of pixels over patches, a feature network that can be followed by hand."""

    num_features = 9

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return self.scale * nn.functional.avg_pool2d(images.float() / 255, 2).flatten(1)


def pictures(n: int, seed: int, bright: float = 1.0) -> Tensor:
    noise = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (noise.cumsum(-1) / 6 * 255 * bright).clamp(0, 255).to(torch.uint8)


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.double()
    return x.mean(0), torch.cov(x.T)


def frechet(real: Tensor, fake: Tensor) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½), the square roots by eigenvalues of symmetric matrices."""
    (mean1, cov1), (mean2, cov2) = gaussian(real), gaussian(fake)

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T

    middle = root(root(cov1) @ cov2 @ root(cov1))
    return ((mean1 - mean2) ** 2).sum().item() + torch.trace(cov1 + cov2 - 2 * middle).item()


@pytest.fixture
def fid(tmp_path: Path) -> ReferenceFID:
    return ReferenceFID(Patches(), tmp_path)


def test_the_closed_form(fid):
    real, fake = pictures(400, 0), pictures(300, 1, bright=0.8)
    fid.set_reference(real.split(150), "data")
    for part in fake.split(70):
        fid.update(part)
    expected = frechet(Patches()(real), Patches()(fake))
    assert expected > 0.02
    assert fid.compute() == pytest.approx(expected, rel=1e-4)


def test_moments_instead_of_images(fid):
    real, fake = pictures(400, 0), pictures(300, 1, bright=0.8)
    fid.set_moments(*gaussian(Patches()(real)))
    for _ in range(2):  # kept, as a reference of images is
        fid.update(fake)
        assert fid.compute() == pytest.approx(frechet(Patches()(real), Patches()(fake)), rel=1e-4)
    with pytest.raises(ValueError, match="4 features given: must be 9, as many as the network's"):
        fid.set_moments(torch.zeros(4), torch.eye(4))


def test_known_gaussians(tmp_path):
    """Features that are one pixel each: means and variances can be told beforehand, (μ₁ − μ₂)² + (s₁ − s₂)²."""
    fid = ReferenceFID(Patches(), tmp_path)
    signs = torch.tensor([[(n >> k & 1) * 2 - 1 for k in range(9)] for n in range(512)])  # independent, mean 0, var 1

    def images(mean: int, std: int) -> Tensor:
        pixels = (mean + std * signs).to(torch.uint8).reshape(-1, 1, 3, 3)
        return pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)

    fid.set_reference([images(100, 20)], "data")
    fid.update(images(130, 60))
    unbiased = (512 / 511) ** 0.5
    assert fid.compute() == pytest.approx(9 * (30**2 + (40 * unbiased) ** 2) / 255**2, rel=1e-4)


def test_zero_for_the_same_set(fid):
    real = pictures(200, 0)
    fid.set_reference([real], "data")
    fid.update(real.flip(0))
    assert fid.compute() == pytest.approx(0, abs=1e-4)


def test_generated_images_are_forgotten_and_the_reference_is_not(fid):
    real, fake, other = pictures(200, 0), pictures(200, 1, 0.9), pictures(200, 2, 0.5)
    fid.set_reference([real], "data")
    fid.update(fake)
    first = fid.compute()
    fid.update(other)
    assert fid.compute() == pytest.approx(frechet(Patches()(real), Patches()(other)), rel=1e-4)
    fid.update(fake)
    assert fid.compute() == first


def test_the_reference_is_kept_on_disk(tmp_path):
    real, fake = pictures(200, 0), pictures(100, 1)

    def value(images, data_id: str = "data", features: nn.Module | None = None) -> float:
        fid = ReferenceFID(features or Patches(), tmp_path)
        fid.set_reference(images, data_id)
        fid.update(fake)
        return fid.compute()

    expected = value([real])
    (file,) = (tmp_path / "fid").iterdir()
    assert file.suffix == ".safetensors"
    assert load_file(file)["real_features_num_samples"] == 200
    written = file.stat().st_mtime_ns

    def never():
        raise AssertionError("the images were read again")
        yield

    assert value(never()) == expected
    assert (tmp_path / "fid").joinpath(file.name).stat().st_mtime_ns == written
    assert list((tmp_path / "fid").iterdir()) == [file]  # nothing half-written stays

    for other in ({"data_id": "other"}, {"features": Patches(2.0)}):
        with pytest.raises(AssertionError, match="were read again"):
            value(never(), **other)
        value([real], **other)
    assert len(list((tmp_path / "fid").iterdir())) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    real, fake = pictures(200, 0), pictures(100, 1)
    for _ in range(2):
        fid = ReferenceFID(Patches(), tmp_path / "file" / "cache")
        fid.set_reference([real], "data")
        fid.update(fake)
        assert fid.compute() == pytest.approx(frechet(Patches()(real), Patches()(fake)), rel=1e-4)
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here" / "diffusion_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == Path(os.path.expanduser("~")) / ".cache" / "diffusion_lightning"
    assert ReferenceFID(Patches()).cache == default_cache()
