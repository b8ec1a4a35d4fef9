"""That the features called digits see graded damages of real digits: ``benchmarks/yardstick.py``, small."""

import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import EmbeddedMNIST
from diffusion_lightning.metrics.features import build_features, extract_features
from diffusion_lightning.metrics.reference import Moments

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

REFERENCE = 4_000
"""Digits of the reference; as many others are damaged."""


@pytest.fixture(autouse=True, scope="module")
def benchmarks_are_found() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Embedded digits, uint8 (8000, 1, 28, 28), and their labels."""
    images, _ = EmbeddedMNIST().load_images()
    return images.images[: 2 * REFERENCE], images.labels[: 2 * REFERENCE]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_features("digits")[1]


@pytest.fixture(scope="module")
def taken(network: nn.Module, digits: tuple[Tensor, Tensor]) -> Tensor:
    return extract_features(network, digits[0].split(500))


@pytest.fixture(scope="module")
def reference(taken: Tensor) -> Moments:
    return Moments.of(taken[:REFERENCE])


def test_every_damage_of_the_pictures_is_seen(network, digits, taken, reference) -> None:
    from yardstick import faults, picture_distances, real_distances, seen

    num = 250
    real = real_distances(taken[REFERENCE:], reference, num, draws=10)
    damaged = picture_distances(network, reference, digits[0][-num:])
    assert len(damaged) == 7
    assert {name: faults(seen(distances, real)) for name, distances in damaged.items()} == dict.fromkeys(damaged, "")


def test_every_damage_of_a_set_is_seen(digits, taken, reference) -> None:
    from yardstick import faults, real_distances, seen, set_distances

    num, rest = 1_000, taken[REFERENCE:]
    real = real_distances(rest, reference, num, draws=10)
    damaged = set_distances(rest, digits[1][REFERENCE:], reference, num)
    assert len(damaged) == 2
    assert {name: faults(seen(distances, real)) for name, distances in damaged.items()} == dict.fromkeys(damaged, "")


# ---- the damages are what they are called


def test_that_share_of_the_stroke_is_erased_and_nothing_else(digits) -> None:
    from digit_damages import erased

    x = digits[0][:200] / 255
    for share in (0.02, 0.2):
        out = erased(x, share, torch.Generator().manual_seed(0))
        torch.testing.assert_close(out.sum((1, 2, 3)), (1 - share) * x.sum((1, 2, 3)), rtol=1e-4, atol=0)
        assert (out <= x).all()
        changed = ((out < x).sum((1, 2, 3)) / (x > 0).sum((1, 2, 3))).mean()
        assert changed < 2 * share + 0.02  # a hole, not a veil


def test_pixels_are_read_as_far_away_as_it_says() -> None:
    from digit_damages import elastic

    ramp = torch.arange(28.0).expand(64, 1, 28, 28)  # what is read tells from where
    moved = (elastic(ramp, 1.0, torch.Generator().manual_seed(0)) - ramp)[..., 6:-6, 6:-6]
    assert moved.square().mean().item() == pytest.approx(0.5, rel=0.1)  # half of the mean square is along a row


def test_a_blur_has_its_width_and_keeps_the_ink() -> None:
    from digit_damages import blurred

    dot = torch.zeros(1, 1, 29, 29)
    dot[..., 14, 14] = 1
    out = blurred(dot, 1.5, torch.Generator())
    away = torch.arange(29.0) - 14
    assert out.sum().item() == pytest.approx(1)
    assert (out.sum((0, 1, 2)) * away**2).sum().item() == pytest.approx(1.5**2, rel=0.03)
    torch.testing.assert_close(out, out.mT)


def test_sets_are_without_classes_and_with_copies() -> None:
    from digit_damages import left_out, repeated, replaced

    labels = torch.arange(4_000) % 10
    rows = torch.stack([labels.float(), torch.arange(4_000.0)], dim=1)
    for classes, shares in {0.5: [0.5], 1: [0], 2: [0, 0]}.items():
        out = left_out(rows, labels, 1_000, classes, torch.Generator().manual_seed(0))
        counts = out[:, 0].long().bincount(minlength=10)
        assert len(out.unique(dim=0)) == 1_000
        assert sorted((counts / counts.max()).tolist())[: len(shares)] == pytest.approx(shares, abs=0.05)
        assert counts.max() - counts.sort().values[len(shares)] <= 2
    copies = repeated(rows, labels, 1_000, 0.1, torch.Generator().manual_seed(0))
    assert len(copies) == 1_000
    assert len(copies.unique(dim=0)) == 901
    mixed = replaced(rows, -rows - 1, 1_000, 0.1)
    assert len(mixed) == 1_000
    assert (mixed[:, 0] < 0).sum() == 100


# ---- the table


def made_up() -> dict:
    from yardstick import damages

    real = [1.0, 1.1, 0.9, 1.05, 0.95]
    risen = {name: [2.0, 3.0, 4.0, 5.0] for name in damages()}
    fallen = risen | {"noisy": [1.1, 1.2, 4.0, 3.9]}
    others = {"drawn": {"a model": 3.0}, "legible": {"real digits": 0.98, "a model": 0.5}}
    features = {
        "new": {"real": real, "damages": risen, **others},
        "old": {"real": real, "damages": fallen, **others, "legible": {"real digits": None, "a model": None}},
    }
    return {"samples": 1_000, "draws": 5, "machine": "a machine", "features": features}


def test_page_tells_what_is_not_seen() -> None:
    from yardstick import page, seen

    results = made_up()
    real = results["features"]["new"]["real"]
    assert seen([1.0, 2.0], real) == pytest.approx([0, 1 / statistics.stdev(real)])
    text = page(results)
    assert "| real digits | 5 draws | 1.00 ± 0.08 | 1.00 ± 0.08 |" in text
    assert "| noisy | 0.05 of the range | 2.00 (12.6 sd) | 1.10 (1.3 sd) – first within 3 sd, does not rise |" in text
    assert "| real digits | 1.00 ± 0.08, 98.0% legible | 1.00 ± 0.08 |" in text
    assert "| a model | 3.00 (25.3 sd), 50.0% legible | 3.00 (25.3 sd) |" in text
    assert text.count("first within") == text.count("does not rise") == 1


def test_picture_of_the_damages(digits, tmp_path: Path) -> None:
    from yardstick import plot

    plot(digits[0][:100], digits[0][100:200], tmp_path / "damages.png")
    assert (tmp_path / "damages.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_features_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import yardstick

    monkeypatch.setattr("sys.argv", ["yardstick.py", "--features=digits,imagenet"])
    with pytest.raises(SystemExit) as stopped:
        yardstick.main()
    assert stopped.value.code == 2
    assert "error: --features: imagenet: must be among inception" in capsys.readouterr().err.splitlines()[-1]
