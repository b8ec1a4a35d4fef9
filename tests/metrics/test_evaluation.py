"""Each measure against an exact answer, and against its own definition written out."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_lightning import Reference, evaluate
from diffusion_lightning.metrics.evaluation import (
    frechet_distance,
    inception_score,
    is_spread,
    kernel_distance,
    metric_name,
    possible_metrics,
    precision_recall,
)
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.randomness import draw_some


def normal(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def reference(features: Tensor) -> Reference:
    return Reference("those", Moments.of(features), features)


# ---- FID


def test_fid_of_two_gaussians():
    """Between N(μ, Σ) and the same stretched by s and moved, it is ‖Δμ‖² + (s − 1)²·tr Σ."""
    x = normal(300, 5, 0) @ normal(5, 5, 1)
    y = 3 * x + torch.arange(5)
    exact = (y.double().mean(0) - x.double().mean(0)).square().sum() + 4 * torch.cov(x.double().T).trace()
    assert frechet_distance(y, Moments.of(x)) == pytest.approx(exact.item(), rel=1e-6)


def test_fid_of_moments_that_were_never_measured():
    """Of independent features of variances a² and b² it is Σ (a − b)² + Δμ²."""
    signs = torch.tensor([[(n >> k & 1) * 2.0 - 1 for k in range(4)] for n in range(16)]) * (15 / 16) ** 0.5
    given = Moments(torch.full((4,), 2.0).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0])).double())
    assert frechet_distance(signs, given) == pytest.approx(4 * 2**2 + 0 + 1 + 4 + 9, rel=1e-6)


def test_fid_is_that_of_torchmetrics():
    class Same(nn.Identity):
        num_features = 6

    real, fake = normal(200, 6, 0), 1.2 * normal(150, 6, 1, shift=0.3)
    metric = FrechetInceptionDistance(feature=Same())
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    assert frechet_distance(fake, Moments.of(real)) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_fid_of_another_number_of_features():
    with pytest.raises(ValueError, match="6 features given: must be 5"):
        frechet_distance(normal(10, 5, 0), Moments.of(normal(10, 6, 0)))


# ---- KID


def kernel_by_hand(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of Bińkowski et al. 2018, eq. 4, pair by pair."""

    def kernel(a: Tensor, b: Tensor) -> float:
        return ((a @ b).item() / len(a) + 1) ** 3

    x, y = x.double(), y.double()
    within = sum(
        kernel(a, b) / (len(z) * (len(z) - 1))
        for z in (x, y)
        for i, a in enumerate(z)
        for j, b in enumerate(z)
        if i != j
    )
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_is_the_estimate_of_the_paper():
    x, y = normal(12, 4, 0), normal(12, 4, 1, shift=0.5)
    mean, std = kernel_distance(x, y, subsets=3, subset_size=12)  # each subset is the whole set
    assert mean == pytest.approx(kernel_by_hand(x, y), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-12)


def test_kid_of_one_set_with_itself_is_about_zero():
    x = normal(400, 16, 0)
    mean, _ = kernel_distance(x, x.flip(0), subsets=20, subset_size=200)
    far, _ = kernel_distance(x, x + 1, subsets=20, subset_size=200)
    assert abs(mean) < 0.01 * far


def test_kid_is_unbiased():
    """Over many pairs of small sets of one distribution its mean is 0, where that of the biased estimate is not."""
    values, biased = [], []
    for seed in range(300):
        x, y = normal(8, 3, 2 * seed), normal(8, 3, 2 * seed + 1)
        values.append(kernel_distance(x, y, subsets=1, subset_size=8)[0])
        gram = (torch.cat((x, y)) @ torch.cat((x, y)).T / 3 + 1) ** 3
        biased.append((gram[:8, :8].mean() + gram[8:, 8:].mean() - 2 * gram[:8, 8:].mean()).item())
    values, biased = torch.tensor(values), torch.tensor(biased)
    error = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 4 * error
    assert biased.mean() > 10 * error


# ---- Inception Score


def test_is_of_one_answer_is_one_and_of_all_answers_is_their_number():
    assert inception_score(torch.zeros(50, 7), splits=1)[0] == pytest.approx(1)
    certain = 100.0 * torch.eye(10).repeat(20, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(10)
    assert inception_score(100.0 * torch.eye(10)[[3] * 40], splits=1)[0] == pytest.approx(1)


def test_is_by_its_definition_in_splits():
    logits = normal(100, 5, 0)
    p = logits.double().softmax(1)
    exact = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert inception_score(logits, splits=1)[0] == pytest.approx(exact.item(), rel=1e-9)
    mean, std = inception_score(logits, splits=4)
    assert mean < exact  # a split's own mean is nearer to its members
    assert 0 < std < mean


# ---- precision and recall


def by_definition(a: Tensor, b: Tensor, k: int) -> float:
    """The part of a within a ball around some b that reaches to its k-th nearest other one."""
    radii = torch.stack([(b - point).norm(dim=1).sort().values[k] for point in b])
    return sum(bool(((b - point).norm(dim=1) <= radii).any()) for point in a) / len(a)


def test_precision_and_recall_of_one_set_with_itself():
    x = normal(100, 8, 0)
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)


def test_precision_and_recall_on_a_line():
    """Real 0 … 9; two samples among them, two far away, whose balls are so wide that they cover everything real."""
    real, fake = torch.arange(10.0)[:, None], torch.tensor([[0.5], [4.5], [100.0], [200.0]])
    assert precision_recall(fake, real) == (0.5, 1)
    assert precision_recall(real, fake) == (1, 0.5)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_their_definition(k):
    fake, real = normal(60, 4, 0, shift=0.7), normal(80, 4, 1)
    precision, recall = precision_recall(fake, real, k)
    assert precision == pytest.approx(by_definition(fake, real, k))
    assert recall == pytest.approx(by_definition(real, fake, k))
    assert 0 < min(precision, recall) < max(precision, recall) < 1


# ---- all of them


def test_all_at_once_and_what_they_depend_on():
    fake, real, logits = normal(40, 4, 0, shift=0.4), normal(90, 4, 1), normal(40, 3, 2)
    scores = evaluate(fake, reference(real), ("fid", "kid", "is", "precision_recall"), logits=logits, seed=5)
    assert scores.settings == {
        "kid": {"subsets": 100, "subset_size": 40},
        "is": {"splits": 1},
        "precision_recall": {"neighbours": 3, "images": 40},
    }
    assert scores.values["fid"] == frechet_distance(fake, Moments.of(real))
    assert (scores.values["kid"], scores.values["kid_std"]) == kernel_distance(fake, real, 100, 40, 5)
    assert scores.values["is"] == inception_score(logits, 1, 5)[0]
    some = real[draw_some(40, 90, seed=5)]
    assert (scores.values["precision"], scores.values["recall"]) == precision_recall(fake, some)
    assert set(scores.values) == {"fid", "kid", "kid_std", "is", "precision", "recall"}


def test_agreement_with_what_was_asked_for():
    logits = 9 * torch.eye(3)[[0, 1, 2, 2]]
    found = evaluate(normal(4, 2, 0), None, ["agreement"], logits=logits, labels=torch.tensor([0, 1, 1, 1]))
    assert found.values == {"agreement": 0.5, "agreement_error": 0.25, "legible": 1, "legible_error": 0}
    assert evaluate(normal(4, 2, 0), None, ["agreement"], logits=logits).values == {"legible": 1, "legible_error": 0}


def test_many_images_are_split_for_the_inception_score():
    scores = evaluate(normal(1000, 2, 0), None, ["is"], logits=normal(1000, 3, 0))
    assert scores.settings == {"is": {"splits": 10}}
    assert scores.values["is_std"] > 0


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    fake, real = normal(40, 4, 0), normal(90, 4, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (evaluate(fake, reference(real), ["kid"], seed=seed).values["kid"] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other


def test_two_images_are_enough():
    scores = evaluate(normal(2, 3, 0), reference(normal(2, 3, 1)), ("fid", "kid", "precision_recall"))
    assert all(value == value for value in scores.values.values())
    assert scores.settings["precision_recall"] == {"neighbours": 1, "images": 2}


def test_what_is_missing_is_named():
    fake, moments = normal(5, 3, 0), Reference("those", Moments.of(normal(5, 3, 1)))
    assert evaluate(fake, moments, ["fid"]).values["fid"] > 0
    for metric in ("kid", "precision_recall"):
        with pytest.raises(ValueError, match=f"metrics: {metric} needs a reference's features"):
            evaluate(fake, moments, [metric])
    with pytest.raises(ValueError, match="metrics: fid needs a reference"):
        evaluate(fake, None, ["fid"])
    with pytest.raises(ValueError, match="metrics: is needs a classifier's logits"):
        evaluate(fake, moments, ["is"])
    with pytest.raises(ValueError, match="metrics: agreement needs a classifier's logits"):
        evaluate(fake, moments, ["agreement"])
    with pytest.raises(ValueError, match="metrics: 'fdi' is none of fid, kid, is, precision_recall, agreement"):
        evaluate(fake, moments, ["fdi"])
    with pytest.raises(ValueError, match=r"features have shape \(1, 3\): must be \(N, F\), N at least 2"):
        evaluate(fake[:1], moments, ["fid"])


def test_what_features_allow():
    assert possible_metrics(DigitFeatures(), has_features=True) == ("fid", "kid", "is", "precision_recall")
    assert possible_metrics(DigitFeatures(), has_features=False) == ("fid", "is")
    assert possible_metrics(nn.Identity(), has_features=True) == ("fid", "kid", "precision_recall")
    assert possible_metrics(DigitFeatures(), has_features=False, reads_classes=True) == ("fid", "is", "agreement")


def test_names():
    assert metric_name("fid", "mnist", 10_000) == "fid/mnist@10000"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("kid_std/mnist@9", True), ("bits_per_dim_error@4", True)),
        *(("kid_std/mnist@8", False), ("kid/mnist@9", False), ("my_error/x", False), ("val/top_error/x", False)),
    ],
)
def test_a_spread_is_one_of_another_value(name, expected):
    assert is_spread(name, {"kid/mnist@9", "bits_per_dim@4", "val/top/x"}) is expected
