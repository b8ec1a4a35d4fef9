"""Learning rates over the run's own length, and what is said of a schedule that is not made for it."""

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from diffusion_lightning import LinearDecay
from diffusion_lightning.training.schedule import advance, at_step, make_scheduler, misfit, overruled


def sgd(lr: float = 0.8) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: Any, steps: int) -> list[float]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(scheduler.optimizer.param_groups[0]["lr"])
            advance(scheduler)
    return found


def test_a_linear_decay_is_torchs_line_bit_for_bit_and_then_stays():
    ours = rates(LinearDecay(sgd(), end_factor=0.02, total_steps=1680), 2000)
    assert ours == rates(LinearLR(sgd(), start_factor=1.0, end_factor=0.02, total_iters=1680), 2000)
    assert ours[1680:] == pytest.approx([0.8 * 0.02] * 320)
    assert ours[840] == pytest.approx(0.8 * 0.51)


@pytest.mark.parametrize("steps", [None, 0, -1])
def test_a_linear_decay_needs_a_length(steps):
    with pytest.raises(ValueError, match=f"total_steps={steps}: must be at least 1"):
        LinearDecay(sgd(), total_steps=steps)


@pytest.mark.parametrize("make", [LinearDecay, partial(LinearDecay, end_factor=0.5), partial(OneCycleLR, max_lr=1.0)])
def test_a_length_that_is_left_out_is_the_runs(make):
    assert make_scheduler(make, sgd(), 120).total_steps == 120


def test_in_a_run_without_end_a_decay_stays_and_a_cycle_is_refused():
    scheduler = make_scheduler(LinearDecay, sgd(), math.inf)
    assert rates(scheduler, 1000) == [0.8] * 1000
    assert "LinearDecay follows the run's length, but this run has no end: its" in (misfit(scheduler, math.inf) or "")
    with pytest.raises(
        ValueError, match="lr_scheduler: OneCycleLR follows the run's length, but this run has no end: g"
    ):
        make_scheduler(partial(OneCycleLR, max_lr=1.0), sgd(), math.inf)


@pytest.mark.parametrize(
    "make",
    [
        partial(LinearDecay, total_steps=7),
        partial(OneCycleLR, max_lr=1.0, total_steps=7),
        partial(OneCycleLR, max_lr=1.0, epochs=1, steps_per_epoch=7),
    ],
)
def test_a_length_that_is_given_stays(make):
    assert make_scheduler(make, sgd(), math.inf).total_steps == 7


def test_any_other_scheduler_is_made_as_it_is():
    assert make_scheduler(partial(ExponentialLR, gamma=0.5), sgd(), 120).gamma == 0.5


def test_past_its_end_one_cycle_stays_where_torch_would_raise():
    scheduler = OneCycleLR(sgd(), max_lr=1.0, total_steps=10)
    found = rates(scheduler, 30)
    assert max(found) == pytest.approx(1.0)
    assert found[9:] == pytest.approx([1.0 / 25 / 1e4] * 21)


def test_at_a_step_it_is_where_stepping_leads():
    straight = LinearDecay(sgd(), total_steps=50)
    expected = rates(straight, 21)[20]
    optimizer, scheduler = at_step(
        lambda over: torch.optim.SGD(over, lr=0.8), LinearDecay, 50, 20, [torch.nn.Parameter(torch.zeros(1))]
    )
    assert optimizer.param_groups[0]["lr"] == expected
    assert scheduler.last_epoch == 20


def sequence() -> SequentialLR:
    optimizer = sgd()
    parts = [LinearLR(optimizer, 0.1, 1.0, 10), CosineAnnealingLR(optimizer, 40)]
    return SequentialLR(optimizer, parts, [10])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "run_steps", "said"),
    [
        (lambda: LinearLR(sgd(), 1.0, 0.1, 100), 104, None),
        (lambda: LinearLR(sgd(), 1.0, 0.1, 100), 96, None),
        (lambda: LinearLR(sgd(), 1.0, 0.1, 100), 200, "LinearLR ends after 100 steps, but the run makes 200: the"),
        (lambda: LinearLR(sgd(), 1.0, 0.1, 100), 50, "LinearLR is for 100 steps, but the run makes 50: the"),
        (lambda: LinearLR(sgd(), 0.1, 1.0, 100), 200, None),  # a warm-up
        (lambda: LinearLR(sgd(), 0.1, 1.0, 100), 50, "LinearLR is for 100 steps, but the run makes 50"),
        (lambda: OneCycleLR(sgd(), 1.0, 100), 200, "OneCycleLR ends after 100 steps, but the run makes 200: the"),
        (lambda: OneCycleLR(sgd(), 1.0, 100), 12, "leave out model.lr_scheduler.total_steps to follow the run"),
        (lambda: PolynomialLR(sgd(), 100), 200, "give --model.lr_scheduler.total_iters 200"),
        (lambda: CosineAnnealingLR(sgd(), 100), 200, "the rate then rises again; give --model.lr_scheduler.T_max 200"),
        (lambda: MultiStepLR(sgd(), [10, 100]), 50, "MultiStepLR is for 100 steps, but the run makes 50"),
        (lambda: MultiStepLR(sgd(), [10, 100]), 500, None),
        (lambda: ConstantLR(sgd(), 0.1, 100), 500, None),
        (lambda: ExponentialLR(sgd(), 0.5), 500, None),
        (sequence, 50, None),
        (sequence, 100, "SequentialLR ends after 50 steps, but the run makes 100"),
        (lambda: LinearLR(sgd(), 1.0, 0.1, 100), math.inf, None),
    ],
)  # fmt: skip
def test_a_schedule_that_is_not_for_this_run_is_told_of(make, run_steps, said):
    found = misfit(make(), run_steps)
    assert found is None if said is None else said in found


@pytest.mark.parametrize("make", [OneCycleLR, partial(CyclicLR, base_lr=0.01)])
def test_a_rate_that_its_scheduler_overrules_is_told_of(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    others = {} if isinstance(make, partial) else {"total_steps": 5}
    assert overruled(make(optimizer, max_lr=0.1, **others)) is None
    assert "model.optimizer.lr=0.1: does nothing" in (overruled(make(optimizer, max_lr=0.5, **others)) or "")
    assert overruled(LinearDecay(sgd(), total_steps=5)) is None


def test_a_run_warns_at_its_start_and_goes_to_its_end(make_module, make_data, make_trainer):
    cycle = partial(OneCycleLR, max_lr=1e-3, total_steps=2)
    trainer = make_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"model\.lr_scheduler: OneCycleLR ends after 2 steps, but the run makes 6"):
        trainer.fit(make_module(lr_scheduler=cycle), datamodule=make_data())
    assert trainer.global_step == 6
