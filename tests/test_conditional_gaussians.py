r"""Networks learn what conditions tell, where that is known in closed form: x and its condition are jointly Gaussian.

Given c, x is N(m, S) with m linear in c and S the same for all, and without c it is N(0, S_0). So

.. math:: E[x_0 | x_t, c] = m + \alpha S (\alpha^2 S + \sigma^2 I)^{-1} (x_t - \alpha m) .

A network that passes over c errs by the distance between the two answers, so all errors are told as shares of that: of
such a network the share is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import (
    MLP,
    ClassifierFreeGuidance,
    Denoiser,
    DenoisingScoreMatching,
    GaussianMixtureDenoiser,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    LogNormalTimes,
    NetworkDenoiser,
    UNet,
)

SDE = KarrasSDE(sigma_min=0.02, sigma_max=20.0)
TIMES = LogNormalTimes(-0.5, 1.2)


class ExactGaussian(Denoiser):
    """The exact denoiser of N(m, S), of flat examples; m is given with the call, and is 0 without."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__(SDE)
        self.covariance = covariance

    def denoise(self, x: Tensor, t: Tensor, mean: Tensor | None = None) -> Tensor:
        mean = torch.zeros_like(x) if mean is None else mean
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        variance = alpha[..., None] ** 2 * self.covariance + sigma[..., None] ** 2 * torch.eye(x[0].numel())
        deviation = (x - mean * alpha.reshape(-1, *[1] * (x.ndim - 1))).flatten(1)
        gained = self.covariance @ torch.linalg.solve(variance, deviation[..., None])
        return mean + (alpha * gained[..., 0]).reshape(x.shape)


@dataclass
class Task:
    """Examples and conditions: how conditions are drawn, the mean of x that each stands for, its covariance S."""

    name: str
    draw: Callable[[int], Tensor]
    mean: Callable[[Tensor], Tensor]
    given: Tensor
    without: Tensor
    """The covariance of x without a condition, and …"""
    untold: Denoiser
    """… the exact denoiser."""

    def pairs(self, n: int) -> tuple[Tensor, Tensor]:
        condition = self.draw(n)
        return self.around(self.mean(condition)), condition

    def around(self, mean: Tensor) -> Tensor:
        noise = torch.randn(len(mean), len(self.given)) @ torch.linalg.cholesky(self.given).T
        return mean + noise.reshape(mean.shape)

    def told(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return ExactGaussian(self.given).denoise(x, t, mean=self.mean(condition))


MEAN, STD = torch.tensor([1000.0, 5.0]), torch.tensor([20.0, 0.1])
"""Of a vector, in units of its own."""


def vector() -> tuple[Task, nn.Module]:
    """The first number moves a point; the second says nothing."""
    effect = torch.tensor([[0.4, 0.0], [-0.25, 0.0]])
    given = torch.tensor([[0.05, 0.03], [0.03, 0.08]])
    without = given + effect @ effect.T
    network = MLP(2, (64, 64), condition_dim=2)
    network.standardize(MEAN, STD)

    def mean(c: Tensor) -> Tensor:
        return ((c - MEAN) / STD) @ effect.T

    return Task(
        "vector", lambda n: MEAN + STD * torch.randn(n, 2), mean, given, without, ExactGaussian(without)
    ), network


def labels() -> tuple[Task, nn.Module]:
    """Two classes of points, of one spread; without its class a point is of a mixture."""
    means, std = torch.tensor([[0.4, -0.3], [-0.4, 0.3]]), 0.3
    given = std**2 * torch.eye(2)
    untold = GaussianMixtureDenoiser(means, torch.full((2,), std), torch.ones(2), SDE)
    task = Task(
        "labels",
        lambda n: torch.randint(2, (n,)),
        lambda c: means[c],
        given,
        given + torch.outer(means[0], means[0]),
        untold,
    )
    return task, MLP(2, (64, 64), num_classes=2)


def picture() -> tuple[Task, nn.Module]:
    """Smooth images of 4 × 4, and their means of 2 × 2 pixels with a little noise."""
    place = torch.arange(16)
    distance = (place[:, None] // 4 - place // 4) ** 2 + (place[:, None] % 4 - place % 4) ** 2
    without = 0.25 * torch.exp(-distance / 4) + 0.01 * torch.eye(16)
    blur = torch.zeros(4, 16)
    blur[place // 8 * 2 + place % 4 // 2, place] = 0.25
    seen = blur @ without @ blur.T + 0.05**2 * torch.eye(4)
    gain = without @ blur.T @ torch.linalg.inv(seen)
    root = torch.linalg.cholesky(seen)
    task = Task(
        "picture",
        lambda n: (torch.randn(n, 4) @ root.T).reshape(n, 1, 2, 2),
        lambda c: (c.flatten(1) @ gain.T).reshape(-1, 1, 4, 4),
        without - gain @ blur @ without,
        without,
        ExactGaussian(without),
    )
    return task, UNet(1, (16,), 1, middle_attention=False, embed_dim=16, condition_channels=1)


def tokens() -> tuple[Task, nn.Module]:
    """Images of 2 × 2 of which the mean of one to three tokens tells, among padding."""
    effect = 0.35 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [-0.5, 1.0]])
    given = 0.05 * torch.eye(4) + 0.02

    def draw(n: int) -> Tensor:
        count = 1 + torch.randint(3, (n,))
        drawn = torch.randn(n, 3, 2) * count[:, None, None].sqrt()  # so that their mean is N(0, I)
        drawn[torch.arange(3) >= count[:, None]] = torch.nan
        return drawn[:, torch.randperm(3)]

    def mean(c: Tensor) -> Tensor:
        return (c.nanmean(1) @ effect.T).reshape(-1, 1, 2, 2)

    without = given + effect @ effect.T
    network = UNet(1, (16,), 1, embed_dim=16, context_dim=2)
    return Task("tokens", draw, mean, given, without, ExactGaussian(without)), network


def train(task: Task, network: nn.Module) -> NetworkDenoiser:
    """Denoising score matching with a third of the conditions dropped; the learning rate falls to nothing."""
    steps, batch = (400, 512) if isinstance(network, MLP) else (300, 64)
    denoiser = NetworkDenoiser(network, SDE, KarrasPreconditioning(sigma_data=0.5))
    objective = DenoisingScoreMatching("karras", times=TIMES, reduction="mean")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(steps):
        x, condition = task.pairs(batch)
        dropped = slice(batch // 3)
        condition[dropped] = denoiser.null(**{task.name: condition})[task.name][dropped]
        optimizer.zero_grad()
        objective(denoiser, x, **{task.name: condition}).mean().backward()
        optimizer.step()
        schedule.step()
    return denoiser.eval().requires_grad_(False)


TASKS = [vector, labels, picture, tokens]
of_each = pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)


@cache
def learnt(make: Callable[[], tuple[Task, nn.Module]]) -> tuple[Task, NetworkDenoiser]:
    """A task and a denoiser trained on it, once for all tests."""
    torch.manual_seed(0)
    task, network = make()
    return task, train(task, network)


def noisy(task: Task, n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """Noised examples, their times and conditions."""
    torch.manual_seed(1)
    x, condition = task.pairs(n)
    t = TIMES(SDE, n)
    return SDE.perturb(x, t, torch.randn_like(x)), t, condition


def test_the_closed_form_is_that_of_one_gaussian():
    """Given a point of N(m, s²I) it is that of the mixture of one; and the covariances are those of what is drawn."""
    mean, x, t = torch.tensor([0.5, -1.0]), torch.randn(5, 2), SDE.timesteps(4)
    mixture = GaussianMixtureDenoiser(mean[None], torch.tensor([0.3]), torch.ones(1), SDE)
    exact = ExactGaussian(0.09 * torch.eye(2)).denoise(x, t, mean=mean.expand(5, 2))
    torch.testing.assert_close(exact, mixture.denoise(x, t))
    torch.manual_seed(0)
    for make in TASKS:
        task, _ = make()
        x, condition = task.pairs(100_000)
        torch.testing.assert_close(x.flatten(1).T.cov(), task.without, atol=0.01, rtol=0)
        torch.testing.assert_close((x - task.mean(condition)).flatten(1).T.cov(), task.given, atol=0.01, rtol=0)


@of_each
def test_the_answers_with_and_without_the_condition_are_the_exact_ones(make):
    task, denoiser = learnt(make)
    x, t, condition = noisy(task)
    told, untold = task.told(x, t, condition), task.untold.denoise(x, t)
    effect = (told - untold).square().mean()
    own, null = denoiser.denoise(x, t, **{task.name: condition}), denoiser.denoise(x, t)
    assert (own - told).square().mean() < 0.15 * effect
    assert (null - untold).square().mean() < 0.15 * effect
    assert (null - told).square().mean() > 0.8 * effect  # what a network that passes over the condition would reach


@of_each
def test_guidance_goes_as_far_beyond_as_the_exact_answers_say(make):
    task, denoiser = learnt(make)
    x, t, condition = noisy(task)
    told, untold = task.told(x, t, condition), task.untold.denoise(x, t)
    guided = ClassifierFreeGuidance(denoiser, weight=2.0).denoise(x, t, **{task.name: condition})
    beyond = (told - untold).square().mean()
    assert (guided - (2 * told - untold)).square().mean() < 0.5 * beyond  # at weight 1 it were all of it


@of_each
def test_samples_have_the_conditional_mean_and_covariance(make):
    task, denoiser = learnt(make)
    torch.manual_seed(2)
    many = 1000
    conditions = task.draw(3) if task.name != "labels" else torch.tensor([0, 1, 1])
    means = task.mean(conditions)
    each = conditions.repeat_interleave(many, 0)
    samples = Heun(10)(denoiser, (3 * many, *means.shape[1:]), **{task.name: each}).unflatten(0, (3, many))
    assert (samples.mean(1) - means).norm() < 0.15 * means.norm()
    spread = torch.stack([of_one.flatten(1).T.cov() for of_one in samples])
    assert (spread - task.given).norm(dim=(1, 2)).max() < 0.3 * (task.without - task.given).norm()


def test_what_says_nothing_of_x_changes_nothing():
    task, denoiser = learnt(vector)
    x, t, condition = noisy(task)
    before = denoiser.denoise(x, t, vector=condition)
    first, second = (denoiser.denoise(x, t, vector=condition + STD * move) for move in torch.eye(2))
    assert (second - before).square().mean() < 0.01 * (first - before).square().mean()
