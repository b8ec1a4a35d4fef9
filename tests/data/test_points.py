import math

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything

from diffusion_lightning import VPSDE, NoisePrediction, ScoreModule
from diffusion_lightning.data import Points
from diffusion_lightning.data.order import BatchOrder
from diffusion_lightning.data.points import (
    draw_points,
    inside_heart,
    moving_normal_log_prob,
    moving_normal_moments,
    split_normal_log_prob,
)
from diffusion_lightning.networks import MLP
from diffusion_lightning.randomness import draw_some

N = 100_000


def draw(distribution, n=N, seed=0):
    return draw_points(distribution, n, torch.Generator().manual_seed(seed))


def grid(lower, upper, steps):
    """Centres of the cells of a square grid, (steps², 2), and the area of a cell; in float64."""
    side = torch.linspace(lower, upper, steps + 1, dtype=torch.float64)
    centres = (side[1:] + side[:-1]) / 2
    return torch.cartesian_prod(centres, centres), ((upper - lower) / steps) ** 2


# --- split normal ---------------------------------------------------------------------------------------------------


def test_split_normal_has_its_moments_gap_and_labels():
    x, labels = draw("split_normal")
    assert (x.dtype, labels.dtype, x.shape, labels.shape) == (torch.float32, torch.int64, (N, 2), (N,))
    assert x[:, 0].abs().min() >= 1
    assert torch.equal(labels, (x[:, 0] > 0).long())
    x = x.double()
    # E(|z| + 1)² = 1 + 2 √(2/π) + 1. Tolerances are five standard errors: √(var/N), and √((E x⁴ − var²)/N) of a
    # variance, where E (|z| + 1)⁴ = 3 + 4·2√(2/π) + 6 + 4√(2/π) + 1.
    absolute = math.sqrt(2 / math.pi)
    variance = torch.tensor([2 + 2 * absolute, 1.0])
    fourth = torch.tensor([10 + 12 * absolute, 3.0])
    assert (x.mean(0).abs() < 5 * (variance / N).sqrt()).all()
    covariance = x.T.cov()
    assert ((covariance.diag() - variance).abs() < 5 * ((fourth - variance**2) / N).sqrt()).all()
    assert covariance[0, 1].abs() < 5 * (variance.prod() / N).sqrt()
    assert abs(labels.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(N)


def test_split_normal_halves_are_normals_moved_by_one():
    x, labels = draw("split_normal")
    for label, side in ((0, -1), (1, 1)):
        pulled = (x[labels == label, 0] - side) * side
        assert pulled.min() >= 0
        for quantile in (0.1, 0.5, 0.9):
            expected = math.sqrt(2) * torch.erfinv(torch.tensor(quantile)).item()  # of |z|
            assert abs((pulled < expected).double().mean() - quantile) < 5 * 0.5 / math.sqrt(len(pulled))


def test_a_coordinate_of_exactly_zero_does_not_stay_in_the_gap(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.zeros(size))
    x, labels = draw_points("split_normal", 3)
    assert x[:, 0].abs().tolist() == [1, 1, 1]
    assert torch.equal(labels, (x[:, 0] > 0).long())


def test_split_normal_density_integrates_to_one_and_is_zero_in_the_gap():
    x, area = grid(-8, 8, 800)
    density = split_normal_log_prob(x).exp()
    assert density.shape == (640_000,)
    assert (density.sum() * area - 1).abs() < 1e-4
    assert (x.square() * density[:, None]).sum(0).mul(area)[0] == pytest.approx(
        2 + 2 * math.sqrt(2 / math.pi), abs=1e-3
    )
    gap = x[:, 0].abs() < 1
    assert (density[gap] == 0).all()
    assert (density[~gap] > 0).all()
    at = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[2.5, -1.0], [0.0, 0.0]]])
    nats = -math.log(2 * math.pi)
    torch.testing.assert_close(
        split_normal_log_prob(at), torch.tensor([[nats, nats], [nats - (1.5**2 + 1) / 2, -math.inf]])
    )


def test_split_normal_density_is_that_of_its_points():
    x, _ = draw("split_normal")
    # The mean of log p is the negative entropy of N(0, I₂), 1 + log 2π, for every cut in pieces; its variance is 1.
    assert abs(split_normal_log_prob(x).mean() + 1 + math.log(2 * math.pi)) < 5 / math.sqrt(N)


# --- heart ----------------------------------------------------------------------------------------------------------


def polygon(corners=2000):
    """The curve by its own formula, (corners, 2)."""
    a = torch.linspace(0, 2 * math.pi, corners + 1, dtype=torch.float64)[:-1]
    y = 13 * a.cos() - 5 * (2 * a).cos() - 2 * (3 * a).cos() - (4 * a).cos()
    return torch.stack([16 * a.sin() ** 3, y], dim=1) / 16


def inside_polygon(x, corners):
    """Ray casting: inside are points from which a ray to the right crosses the curve an odd number of times."""
    inside = torch.zeros(len(x), dtype=torch.bool)
    for a, b in zip(corners, corners.roll(-1, 0), strict=True):
        straddles = (a[1] > x[:, 1]) != (b[1] > x[:, 1])
        crossing = a[0] + (x[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
        inside ^= straddles & (x[:, 0] < crossing)
    return inside


def test_inside_heart_is_the_inside_of_the_curve():
    corners = polygon(400)
    x, _ = grid(-1.3, 1.3, 120)
    far = torch.cdist(x, corners).amin(1) > 0.01  # where the polygon cannot be on the wrong side of the curve
    assert far.sum() > 0.9 * len(x)
    assert torch.equal(inside_heart(x[far]), inside_polygon(x[far], corners))
    assert inside_heart(0.999 * corners + 0.001 * torch.tensor([0.0, -0.2])).all()
    assert not inside_heart(corners[:, None] * torch.tensor([1.001, 3.0])[:, None]).any()


def test_heart_has_the_extent_and_area_it_is_said_to_have():
    x, area = grid(-1.2, 1.2, 1500)
    x = x[inside_heart(x)]
    assert len(x) * area == pytest.approx(180 * math.pi / 256, rel=1e-3)
    # the lowest point is the end of a cusp, thinner than a grid
    torch.testing.assert_close(x.amin(0), torch.tensor([-1, -17 / 16]).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(x.amax(0), polygon().amax(0), atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.50, 0.39]).double(), atol=5e-3, rtol=0)


def test_heart_points_are_all_inside_and_have_no_class():
    x, labels = draw("heart")
    assert (x.dtype, labels.dtype, x.shape) == (torch.float32, torch.int64, (N, 2))
    assert torch.equal(labels, torch.zeros(N, dtype=torch.int64))
    assert inside_heart(x).all()


def test_heart_points_are_uniform_in_area():
    """The share of each cell of a coarse grid against its area, measured on a fine grid."""
    x, fine = draw("heart")[0], grid(-1.1, 1.1, 1600)[0]
    fine = fine[inside_heart(fine)]

    def shares(points):
        column, row = ((points + 1.1) / 2.2 * 8).long().T
        return torch.bincount(8 * row + column, minlength=64).double() / len(points)

    expected, found = shares(fine), shares(x)
    assert (expected > 0.01).sum() > 25
    error = (expected * (1 - expected) / N).sqrt()
    assert ((found - expected).abs() <= 5 * error + 2e-4).all()  # the second part for the fine grid
    chi_square = ((found - expected) ** 2 / expected)[expected > 0.001].sum() * N
    assert chi_square < 120  # 50 or so degrees of freedom: seven standard deviations


# --- drawing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["split_normal", "heart"])
def test_points_are_a_function_of_the_generator_alone(distribution):
    x, labels = draw(distribution, 1000, seed=1)
    state = torch.get_rng_state()
    again = draw(distribution, 1000, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(x, draw(distribution, 1000, seed=2)[0])
    assert len(x.unique(dim=0)) > 990
    for n in (0, 1):
        assert [part.shape for part in draw(distribution, n)] == [(n, 2), (n,)]
    torch.manual_seed(3)
    without = draw_points(distribution, 5)[0]
    torch.manual_seed(3)
    assert torch.equal(draw_points(distribution, 5)[0], without)


# --- moving normal --------------------------------------------------------------------------------------------------


def test_moving_normal_has_the_moments_it_is_said_to_have():
    x, vector = draw("moving_normal")
    assert (x.dtype, vector.dtype, x.shape, vector.shape) == (torch.float32, torch.float32, (N, 2), (N, 1))
    joint = torch.cat([vector, x], dim=1).double()
    truth = torch.tensor([[1, 1.5, 0.5], [1.5, 2.5, 0.6], [0.5, 0.6, 0.5]], dtype=torch.float64)
    # five standard errors: √(σᵢᵢ/N) of a mean, √((σᵢᵢσⱼⱼ + σᵢⱼ²)/N) of a covariance
    variance = truth.diag()
    assert (joint.mean(0).abs() < 5 * (variance / N).sqrt()).all()
    assert ((joint.T.cov() - truth).abs() < 5 * ((variance[:, None] * variance + truth**2) / N).sqrt()).all()


def test_moving_normal_given_its_number_is_the_joint_normal_given_it():
    """By the formula of a joint Gaussian: mean S_xc S_cc⁻¹ c, covariance S_xx − S_xc S_cc⁻¹ S_cx."""
    vector = torch.tensor([[[-2.0], [0.0]], [[1.0], [3.0]]], dtype=torch.float64)
    mean, covariance = moving_normal_moments(vector)
    line = torch.tensor([1.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(mean, vector * line)
    whole = torch.tensor([[2.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(covariance, whole - torch.outer(line, line))
    x = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(moving_normal_log_prob(x, vector), exact.log_prob(x))


def test_moving_normal_points_are_such_under_each_number():
    x, vector = draw("moving_normal")
    nats = moving_normal_log_prob(x, vector)
    # −(z₁² + z₂²)/2 has the mean −1 and the variance 1
    entropy = 1 + math.log(2 * math.pi * 0.2)
    assert abs(nats.mean() + entropy) < 5 / math.sqrt(N)
    aside = x - moving_normal_moments(vector)[0]
    assert ((aside * vector).mean(0).abs() < 5 * 0.5 / math.sqrt(N)).all()  # the rest knows nothing of the number
    with pytest.raises(ValueError, match=r"x must have shape \(…, 2\), got \(3,\)"):
        moving_normal_log_prob(torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"vector must have shape \(…, 1\), got \(2,\)"):
        moving_normal_moments(torch.zeros(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_condition_of_moving_normal_is_a_vector(workers):
    data = Points("moving_normal", num_points=20, num_held_out=6, batch_size=8, num_workers=workers, seed=2)
    assert (data.num_classes, data.class_names, data.condition_dim) == (1, None, 1)
    points, vectors = data.sets()[0].tensors
    order = BatchOrder(20, 8, shuffle=True, drop_last=True, seed=2)
    for (x, condition), indices in zip(data.train_dataloader(), order, strict=True):
        assert torch.equal(x, points[indices])
        assert condition.keys() == {"vector"}
        assert torch.equal(condition["vector"], vectors[indices])
    x, condition = data.examples([3, 1])
    assert torch.equal(x, data.held_out[[3, 1]])
    assert torch.equal(condition["vector"], data.sets()[1].vectors[[3, 1]])
    mean, std = data.vector_statistics()
    torch.testing.assert_close(mean, vectors.double().mean(0).float(), rtol=0, atol=0)
    torch.testing.assert_close(std, vectors.double().std(0, correction=0).float(), rtol=0, atol=0)
    assert data.class_counts() == [20]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"distribution must be one of \[.*'heart', 'moving_normal'\], got 'spiral'"):
        draw_points("spiral", 3)
    with pytest.raises(ValueError, match=r"distribution must be one of .*, got 'spiral'"):
        Points("spiral")
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        draw_points("heart", -1)
    for name in ("num_points", "num_held_out", "batch_size", "num_predict"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Points(**{name: 0})
    for function in (split_normal_log_prob, inside_heart):
        with pytest.raises(ValueError, match=r"x must have shape \(…, 2\), got \(4, 3\)"):
            function(torch.zeros(4, 3))


# --- data module ----------------------------------------------------------------------------------------------------


def all_points(loader):
    return torch.cat([x for x, _ in loader])


def test_arguments_are_kept_and_read_from_the_command_line():
    given = {"distribution": "heart", "num_points": 30, "num_held_out": 20, "batch_size": 10}
    given |= {"num_workers": 1, "num_predict": 5, "seed": 3}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Points, "data")
    data = parser.instantiate(parser.parse_args([f"--data.{name}={value}" for name, value in given.items()])).data
    assert {name: getattr(data, name) for name in given} == given
    assert (data.shape, data.num_classes) == ((2,), 1)
    assert Points().num_classes == 2
    assert (Points().distribution, Points().num_points, Points().num_held_out) == ("split_normal", 10_000, 2000)


@pytest.mark.parametrize(("distribution", "classes"), [("split_normal", {0, 1}), ("heart", {0})])
def test_loaders_yield_the_points_and_their_labels(distribution, classes):
    data = Points(distribution, num_points=50, num_held_out=21, batch_size=8)
    sizes = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        sizes.append([len(x) for x, _ in loader])
        for x, labels in loader:
            assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert (x.shape, labels.shape) == ((len(x), *data.shape), (len(x),))
            assert set(labels.tolist()) <= classes
            if distribution == "split_normal":
                assert torch.equal(labels, (x[:, 0] > 0).long())
    assert sizes == [[8] * 6, [8, 8, 5], [8, 8, 5]]
    assert torch.equal(all_points(data.val_dataloader()), data.held_out[draw_some(21, 21, seed=0)])
    assert torch.cat(list(data.predict_dataloader())).tolist() == list(range(64))


def test_training_order_is_that_of_the_images():
    data = Points(num_points=50, batch_size=8, seed=4)
    train = data.sets()[0].tensors[0]
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    order = BatchOrder(50, 8, shuffle=True, drop_last=True, seed=4)
    order.set_epoch(2)
    for (x, _), indices in zip(loader, order, strict=True):
        assert torch.equal(x, train[indices])


@pytest.mark.parametrize("distribution", ["split_normal", "heart", "moving_normal"])
def test_the_seed_decides_the_points(distribution):
    def sets(**kwargs):
        return [
            part.tensors[0] for part in Points(distribution, **{"num_points": 64, "num_held_out": 64, **kwargs}).sets()
        ]

    train, held_out = sets(seed=1)
    torch.rand(3)
    assert torch.equal(sets(seed=1)[0], train)
    assert torch.equal(sets(seed=1, num_held_out=10, batch_size=3)[0], train)
    assert torch.equal(sets(seed=1, num_points=10)[1], held_out)
    assert not torch.equal(train, held_out)
    assert not torch.equal(sets(seed=2)[0], train)
    seed_everything(1, verbose=False)
    assert torch.equal(sets()[0], train)


def test_points_are_drawn_once():
    data = Points(num_points=10, num_held_out=10)
    data.setup("fit")
    assert data.held_out is data.held_out
    assert data.sets() is data.sets()


class Rank:
    """What a loader asks of a trainer, as one rank of 2."""

    world_size, overfit_batches = 2, 0

    class strategy:
        root_device = torch.device("cpu")

    def __init__(self, rank):
        self.global_rank = rank


def test_the_shares_of_two_processes_are_distinct_and_complete():
    shares = {"train": [], "val": []}
    for rank in range(2):
        data = Points(num_points=64, num_held_out=31, batch_size=8, seed=2)
        data.trainer = Rank(rank)
        shares["train"].append(all_points(data.train_dataloader()))
        shares["val"].append(all_points(data.val_dataloader()))
    everything = dict(zip(shares, (part.tensors[0] for part in data.sets()), strict=True))
    assert [len(share) for share in shares["train"]] == [32, 32]
    for name, both in shares.items():
        seen = torch.cat(both).tolist()
        assert sorted(seen) == sorted(everything[name].tolist())
        assert len(set(map(tuple, seen))) == len(seen)


@pytest.mark.parametrize("distribution", ["split_normal", "heart", "moving_normal"])
def test_a_score_module_trains_on_points(distribution, make_trainer, tmp_path):
    torch.manual_seed(0)
    module = ScoreModule(MLP(), VPSDE(), NoisePrediction())
    before = [p.clone() for p in module.parameters()]
    data = Points(distribution, num_points=64, num_held_out=32, batch_size=16, seed=0)
    trainer = make_trainer(max_epochs=-1, max_steps=3)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 3
    assert module.shape == (2,)
    assert all(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"] > 0
    trainer.save_checkpoint(tmp_path / "points.ckpt")
    samples = ScoreModule.load_from_checkpoint(tmp_path / "points.ckpt").sample(num=5)
    assert samples.shape == (5, 2)
    assert samples.isfinite().all()
