"""The real side: its moments, the published forms of them, and the files in which they are kept."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import Reference
from diffusion_lightning.metrics import kept
from diffusion_lightning.metrics.evaluation import frechet_distance
from diffusion_lightning.metrics.features import fingerprint
from diffusion_lightning.metrics.reference import Moments


class Means(nn.Module):
    """The means of an image's rows."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(-1).flatten(1)


def pictures(n: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def normal(n: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_moments_are_the_unbiased_ones():
    x = normal(5000) @ normal(5, seed=1) + 100  # more than are summed up at once, and far from the origin
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64
    torch.testing.assert_close(moments.mean, x.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, torch.cov(x.double().T), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"features have shape \(1, 5\): must be \(M, F\), M at least 2"):
        Moments.of(x[:1])


# ---- published statistics


def test_moments_as_edm_and_clean_fid_publish_them(tmp_path):
    x = normal(50).double()
    np.savez(tmp_path / "edm.npz", mu=x.mean(0).numpy(), sigma=np.cov(x.numpy(), rowvar=False))
    read = Reference.read(tmp_path / "edm.npz")
    assert read.name == "edm.npz"
    assert read.features is None
    assert read.feature is None
    torch.testing.assert_close(read.moments.mean, x.mean(0))
    torch.testing.assert_close(read.moments.covariance, torch.cov(x.T))


def test_features_as_score_sde_publishes_them(tmp_path):
    x = normal(50)
    np.savez_compressed(tmp_path / "stats.npz", pool_3=x.numpy(), logits=np.zeros((50, 1008), np.float32))
    read = Reference.read(tmp_path / "stats.npz")
    assert torch.equal(read.features, x)
    torch.testing.assert_close(read.moments.covariance, torch.cov(x.double().T))


def test_adm_has_more_in_its_files(tmp_path):
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=np.ones(3, np.float32), sigma=np.eye(3))
    assert Reference.read(tmp_path / "adm.npz").moments.mean.tolist() == [1, 1, 1]


def test_what_is_exported_gives_the_same_distance(tmp_path):
    real, fake = normal(80), 1.3 * normal(60, seed=1)
    reference = Reference("real", Moments.of(real), real)
    reference.write(tmp_path / "stats.npz", "mnist")
    read = Reference.read(tmp_path / "stats.npz")
    assert read.feature == "mnist"
    assert frechet_distance(fake, read.moments) == pytest.approx(frechet_distance(fake, reference.moments), rel=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]
    with np.load(tmp_path / "stats.npz") as arrays:  # as others read it
        assert {name: arrays[name].dtype.str[1:] for name in ("mu", "sigma")} == {"mu": "f8", "sigma": "f8"}


class Code:
    def __reduce__(self):
        raise AssertionError("unpickled")


def hostile(path):
    eye = np.eye(3)
    yield "no file", None, "there is no such file"
    path.write_bytes(b"")
    yield "empty", None, "is damaged, or not an .npz"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    yield "half a zip", None, "is damaged, or not an .npz"
    with open(path, "wb") as file:
        np.save(file, eye)
    yield "a single array", None, "is damaged, or not an .npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", b"nonsense")
        archive.writestr("sigma.npy", b"nonsense")
    yield "not arrays", None, "is damaged, or not an .npz"
    yield from (
        ("nothing", {}, "holds nothing: must hold mu and sigma"),
        ("others", {"images": eye, "mu": eye[0]}, "holds images, mu: must hold mu and sigma"),
        ("mu of a matrix", {"mu": eye, "sigma": eye}, r"mu has shape \(3, 3\): must be \(F,\)"),
        ("sigma of others", {"mu": np.zeros(4), "sigma": eye}, r"sigma has shape \(3, 3\): must be \(4, 4\)"),
        ("NaN", {"mu": np.full(3, np.nan), "sigma": eye}, "mu holds NaN"),
        ("not symmetric", {"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "sigma is no covariance"),
        ("negative", {"mu": np.zeros(3), "sigma": -eye}, "sigma is no covariance"),
        ("text", {"mu": np.array(["a", "b", "c"]), "sigma": eye}, "mu is of <U1"),
        ("empty features", {"pool_3": np.zeros((0, 3))}, r"pool_3 is of float64, \(0, 3\): must be numbers"),
        ("one image", {"pool_3": np.zeros((1, 3))}, r"pool_3 has shape \(1, 3\): must be \(M, F\), M at least 2"),
        ("code", {"mu": np.array([Code()], dtype=object), "sigma": eye}, "is damaged, or not an .npz of numbers"),
    )


def test_hostile_files(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    for name, arrays, message in hostile(path):
        if arrays is not None:
            if name == "code":
                monkeypatch.setattr(Code, "__reduce__", lambda self: (AssertionError, ("unpickled",)))
            np.savez(path, **arrays)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            Reference.read(path)
        assert "\n" not in str(error.value), name
        assert f"reference='{path}'" in str(error.value)


# ---- the features of images, kept on disk


def test_features_are_computed_once(tmp_path):
    images = pictures(40, 0)
    first = Reference.of_images("set", images.split(15), Means(), "abc", tmp_path)
    assert torch.equal(first.features, Means()(images))
    assert first.name == "set"
    (file,) = (tmp_path / "features").iterdir()
    assert file.name == f"abc-{fingerprint(Means())}.safetensors"

    def never():
        raise AssertionError("the images were read again")
        yield

    again = Reference.of_images("set", never(), Means(), "abc", tmp_path)
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.moments.covariance, first.moments.covariance)
    with pytest.raises(AssertionError, match="read again"):
        Reference.of_images("set", never(), Means(), "other", tmp_path)
    with pytest.raises(AssertionError, match="read again"):
        Reference.of_images("set", never(), nn.Sequential(Means()), "abc", tmp_path)


def test_a_damaged_or_unwritable_cache_costs_only_time(tmp_path):
    images = pictures(40, 0)
    expected = Means()(images)
    Reference.of_images("set", [images], Means(), "abc", tmp_path)
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert torch.equal(Reference.of_images("set", [images], Means(), "abc", tmp_path).features, expected)
    assert file.read_bytes() == whole
    (tmp_path / "file").write_text("in the way")
    assert torch.equal(Reference.of_images("set", [images], Means(), "abc", tmp_path / "file").features, expected)
    assert torch.equal(Reference.of_images("set", [images], Means(), "abc").features, expected)


def test_features_of_parts_go_on_after_the_last_one_that_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PART", 500)
    images = pictures(1700, 0)
    expected = Reference.of_images("set", images.split(500), Means(), "abc")
    read: list[int] = []

    def batches(part: range) -> Iterator[Tensor]:
        if part.start == until:
            raise KeyboardInterrupt
        read.append(part.start)
        yield from images[part.start : part.stop].split(500)

    def reference(cache: Path | None = tmp_path) -> Reference:
        read.clear()
        return Reference.of_parts("set", 1700, batches, Means(), "abc", cache)

    until = 1000
    with pytest.raises(KeyboardInterrupt):
        reference()
    assert read == [0, 500]
    first, second = sorted((tmp_path / "features").iterdir())
    second.write_bytes(second.read_bytes()[:-1])
    until = 1500
    with pytest.raises(KeyboardInterrupt):
        reference()
    assert read == [500, 1000]
    kept.store(first, {"features": torch.zeros(10, 6)})  # of other images
    until = -1
    found = reference()
    assert read == [0, 1500]
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.moments.covariance, expected.moments.covariance)
    (file,) = (tmp_path / "features").iterdir()
    assert file.name == f"abc-{fingerprint(Means())}.safetensors"
    assert torch.equal(reference().features, expected.features)
    assert read == []
    assert torch.equal(reference(None).features, expected.features)
    assert read == [0, 500, 1000, 1500]
