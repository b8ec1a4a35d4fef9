"""Learning rates that follow the run's own length, and what is said of those that do not.

A scheduler class with an argument ``total_steps`` that is left out, such as torch's ``OneCycleLR`` or
:class:`LinearDecay`, is told the number of the run's optimizer steps. So a config holds for any number of epochs, of
processes and of examples.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from diffusion_lightning.training.recipe import class_behind

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., Any]

TOLERANCE = 0.05
"""The part of a run by which a schedule may be shorter or longer without a word."""

ANY_LENGTH = 1000
"""Steps of a run whose length is not known yet: for a look at whether the scheduler can be made."""


class LinearDecay(LinearLR):
    r"""The learning rate falls along a line, to ``end_factor`` of it at the end of the run, and stays there.

    .. math:: \eta_n = \eta\,\big(1 - (1 - e)\,\tfrac{\min(n, N)}{N}\big)

    after n of N = ``total_steps`` optimizer steps, with e the ``end_factor``; computed as torch's ``LinearLR`` does.

    Args:
        optimizer: whose rates it sets.
        end_factor: e, in [0, 1].
        total_steps: N; those of the run if left out, where a ``ScoreModule`` makes it. Infinite, the rate stays.

    Raises:
        ValueError: if an argument is out of its range, or ``total_steps`` is not known.
    """

    total_steps: float

    def __init__(self, optimizer: Optimizer, end_factor: float = 0.02, total_steps: int | None = None) -> None:
        if total_steps is None or total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: must be at least 1; only a ScoreModule knows it by itself")
        self.total_steps = total_steps
        super().__init__(optimizer, start_factor=1.0, end_factor=end_factor, total_iters=total_steps)


def make_scheduler(make: MakeScheduler, optimizer: Optimizer, run_steps: float) -> Any:
    """The scheduler, told the run's length if it wants to know it.

    Args:
        make: a scheduler class with its arguments bound, called with the optimizer.
        optimizer: whose rates it sets.
        run_steps: optimizer steps of the run; infinite if it has no end.

    Raises:
        ValueError: if it wants to know the length of a run without end.
    """
    if not follows_the_run(make):
        return make(optimizer)
    cls, _ = class_behind(make)
    if run_steps == math.inf and not issubclass(cls, LinearDecay):
        raise ValueError(
            f"lr_scheduler: {cls.__name__} follows the run's length, but this run has no end: give "
            "trainer.max_epochs or trainer.max_steps, or model.lr_scheduler.total_steps"
        )
    return make(optimizer, total_steps=run_steps if run_steps == math.inf else max(int(run_steps), 1))


def with_scheduler(optimizer: Optimizer, make: MakeScheduler | None, run_steps: float) -> Any:
    """What a module's ``configure_optimizers`` gives: the optimizer, and its scheduler if there is one.

    Args:
        optimizer: whose rates it sets.
        make: as of :func:`make_scheduler`; None for none.
        run_steps: as there.
    """
    if make is None:
        return optimizer
    scheduler = make_scheduler(make, optimizer, run_steps)
    if isinstance(scheduler, ReduceLROnPlateau):
        # for Lightning an ordinary one, which it steps by lr_scheduler_step: where a metric is missing it would end
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "reduce_on_plateau": False}}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plateau_monitor(lr_scheduler: Any) -> str | None:
    """What a ``ReduceLROnPlateau`` watches, before it is made; None for any other schedule."""
    cls, given = (None, {}) if lr_scheduler is None else class_behind(lr_scheduler)
    if cls is None or not issubclass(cls, ReduceLROnPlateau):
        return None
    return str(given.get("monitor", "train/loss_epoch"))


def follows_the_run(make: MakeScheduler) -> bool:
    """Whether the scheduler that this makes has an argument ``total_steps`` that is not given."""
    cls, given = class_behind(make)
    if "total_steps" not in inspect.signature(cls).parameters or given.get("total_steps") is not None:
        return False
    return given.get("epochs") is None or given.get("steps_per_epoch") is None  # OneCycleLR's other way to say it


def advance(scheduler: Any) -> None:
    """One optimizer step further; at the end of its schedule the rate stays where it is, where torch would raise."""
    if not (isinstance(scheduler, OneCycleLR) and scheduler.last_epoch + 1 >= scheduler.total_steps):
        scheduler.step()


def at_step(make_optimizer: MakeOptimizer, make: MakeScheduler | None, run_steps: float, step: int, over: Any) -> Any:
    """An optimizer and its scheduler (None without one) as they are after ``step`` steps, with no other state.

    A ``ReduceLROnPlateau`` is as it is made, for it follows no steps.

    Args:
        make_optimizer: called with the parameters.
        make: the scheduler; None for none.
        run_steps: of the run.
        step: how many.
        over: the parameters.
    """
    optimizer = make_optimizer(over)
    if make is None:
        return optimizer, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that the optimizer makes no steps between those of the scheduler
        scheduler = make_scheduler(make, optimizer, run_steps)
        if not isinstance(scheduler, ReduceLROnPlateau):
            for _ in range(step):
                advance(scheduler)
    return optimizer, scheduler


def overruled(scheduler: Any) -> str | None:
    """In which words the optimizer's own rate does nothing, for the scheduler sets it; None if it is its default."""
    if not isinstance(scheduler, OneCycleLR | CyclicLR):
        return None
    given, (group, *_) = scheduler.optimizer.defaults["lr"], scheduler.optimizer.param_groups
    highest = group["max_lr"] if isinstance(scheduler, OneCycleLR) else scheduler.max_lrs[0]
    if given in (highest, inspect.signature(type(scheduler.optimizer)).parameters["lr"].default):
        return None
    return (
        f"model.optimizer.lr={given}: does nothing, for {type(scheduler).__name__} goes up to its max_lr={highest}: "
        f"give --model.lr_scheduler.max_lr {given} if that was meant"
    )


def misfit(scheduler: Any, run_steps: float) -> str | None:
    """In which words a schedule is shorter or longer than a run by more than 5 %; None if it is not."""
    length = _length(scheduler)
    if length == run_steps == math.inf:
        return (
            f"model.lr_scheduler: {type(scheduler).__name__} follows the run's length, but this run has no end: its "
            "rate stays; give trainer.max_epochs or trainer.max_steps, or model.lr_scheduler.total_steps"
        )
    if run_steps == math.inf:
        return None
    if length is None or abs(length - run_steps) <= TOLERANCE * run_steps:
        return None
    name = type(scheduler).__name__
    if length > run_steps:
        return (
            f"model.lr_scheduler: {name} is for {length} steps, but the run makes {run_steps:.0f}: "
            f"the rate will not come to its end; {_way_out(scheduler, run_steps)}"
        )
    if not _falls(scheduler):  # a warm-up, or one of several milestones
        return None
    then = "the rate then rises again" if isinstance(scheduler, CosineAnnealingLR) else "the rate then stays as it is"
    return (
        f"model.lr_scheduler: {name} ends after {length} steps, but the run makes {run_steps:.0f}: "
        f"{then}; {_way_out(scheduler, run_steps)}"
    )


def _way_out(scheduler: Any, run_steps: float) -> str:
    match scheduler:
        case OneCycleLR() | LinearDecay():
            return "leave out model.lr_scheduler.total_steps to follow the run"
        case LinearLR() | PolynomialLR():
            return f"give --model.lr_scheduler.total_iters {run_steps:.0f}, or LinearDecay, which follows the run"
        case CosineAnnealingLR():
            return f"give --model.lr_scheduler.T_max {run_steps:.0f}"
    return "give it the run's length"


def _length(scheduler: Any) -> float | None:
    """Steps after which a schedule has come to its end; None if it has none."""
    match scheduler:
        case OneCycleLR():
            return scheduler.total_steps
        case LinearLR() | PolynomialLR():
            return scheduler.total_iters
        case CosineAnnealingLR():
            return scheduler.T_max
        case MultiStepLR():
            return max(scheduler.milestones, default=0) or None
        case SequentialLR():
            last = _length(scheduler._schedulers[-1])
            return None if last is None else scheduler._milestones[-1] + last
    return None


def _falls(scheduler: Any) -> bool:
    """Whether a schedule is to end with the run: its rate falls all the way."""
    match scheduler:
        case LinearLR():
            return scheduler.end_factor < scheduler.start_factor
        case SequentialLR():
            return _falls(scheduler._schedulers[-1])
    return not isinstance(scheduler, MultiStepLR)
