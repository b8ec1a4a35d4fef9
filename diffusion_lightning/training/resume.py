"""What a resumed run is asked to do otherwise than before: said, and laid over the restored state, or refused.

A checkpoint holds the recipe of its module and the state of its optimizer and scheduler. Restored as it is, that state
would silently undo every option that was changed. So the two recipes are compared, and

- what the weights mean (network, process, parameterization) and the optimizer's class must be the same: else an error,
  before anything is written;
- an option of the optimizer replaces its value in the restored parameter groups;
- a schedule that has changed, or follows a run whose length has, is made anew and taken to the step that is due;
- anything else is the new module's own already.

What has not been changed is not touched.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from diffusion_lightning.training.recipe import build, class_of, describe
from diffusion_lightning.training.schedule import ANY_LENGTH, at_step, follows_the_run

MEANING = ("network", "sde", "parameterization")
"""Parts of a module that decide what its weights mean."""

FREE = ("checkpointing", "dropout")
"""Arguments of networks that decide how they are computed or trained, and not what their weights mean."""

OWN = ("shape",)
"""What a module has learnt from its data."""


@dataclass(frozen=True)
class Change:
    """An option by its name below ``model``, as it was in the checkpoint and as it is now; classes by their names."""

    name: str
    was: Any
    now: Any

    @property
    def part(self) -> str:
        """The argument of the module that it belongs to."""
        return self.name.partition(".")[0]


@dataclass
class Makers:
    """What makes optimizer and scheduler."""

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None = None


def changes(saved: Mapping[str, Any], own: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Change]:
    """The options in which two modules' recipes differ.

    Args:
        saved: hyperparameters of the checkpoint.
        own: those of the module that goes on with it.
        defaults: of arguments that the checkpoint is too old to have.
    """
    found: list[Change] = []
    for name in own.keys() - set(OWN):
        found += _differences(name, saved.get(name, defaults.get(name)), own[name])
    return sorted(found, key=lambda change: change.name)


def check_network(found: list[Change]) -> None:
    """Raise a ValueError that names the differences, if a checkpoint is of another network."""
    own = [change for change in found if change.part == "network" and change.name.rpartition(".")[2] not in FREE]
    if any(change.name == "network" for change in own):
        raise ValueError(f"the checkpoint is of another network: {own[0].was} there, {own[0].now} here")
    if own:
        words = (f"{change.name.partition('.')[2]}={change.was} there, {change.now} here" for change in own)
        raise ValueError(f"the checkpoint is of another network: {'; '.join(words)}")


def check(found: list[Change], saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the option, if one was changed and cannot be while the training goes on.

    Args:
        found: the `changes` between the other two.
        saved: hyperparameters of the checkpoint.
        own: those of the module.
    """
    check_network(found)
    for change in found:
        if change.part in MEANING and change.part != "network":
            raise ValueError(
                f"model.{change.name}={change.now}: the checkpoint was trained with {change.was}, and its weights mean "
                "nothing else: leave it out, or start a new run without --ckpt_path"
            )
        if change.name == "optimizer":
            raise ValueError(
                f"model.optimizer={change.now}: the checkpoint has the state of {change.was}, of which it can make no "
                "use: leave it out, or start a new run without --ckpt_path"
            )
    changed = [change for change in found if change.part == "optimizer"]
    for change in changed:
        if _is_overruled(change, saved["optimizer"], own):
            scheduler = _short(own["lr_scheduler"])
            raise ValueError(
                f"model.{change.name}={change.now}: does nothing, for {scheduler} sets it by its own arguments: change "
                f"those (lightning fit --model.lr_scheduler.help {scheduler} lists them)"
            )
    if changed and (reason := _why_not(saved["optimizer"], own["optimizer"])):
        names = ", ".join(f"model.{change.name}={change.now}" for change in changed)
        raise ValueError(
            f"{names}: cannot be changed on a resume, for the checkpoint's optimizer has no state for it ({reason}): "
            "leave it out, or start a new run without --ckpt_path"
        )


def lay_over(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scheduler_state: Mapping[str, Any] | None,
    saved: Mapping[str, Any],
    own: Makers,
    run_steps: float,
    step: int,
) -> list[str]:
    """Lay what was changed over a restored optimizer and its scheduler, in place.

    Args:
        optimizer: with the checkpoint's state.
        scheduler: with the checkpoint's state if it is of the same class, else new; None for none.
        scheduler_state: of the checkpoint; None if it had no scheduler.
        saved: hyperparameters of the checkpoint.
        own: what the module makes them by.
        run_steps: optimizer steps of the run, those before included.
        step: optimizer steps that are done.

    Returns:
        Lines that say what has become of the schedule and the learning rate, beside the options that were changed.
    """
    before = build(Makers, {name: saved.get(name) for name in ("optimizer", "lr_scheduler")})
    length = run_steps
    if before.lr_scheduler is not None and follows_the_run(before.lr_scheduler) and scheduler_state is not None:
        length = scheduler_state.get("total_steps", run_steps)
    same = all(describe(getattr(own, name)) == describe(getattr(before, name)) for name in vars(own))
    is_stretched = own.lr_scheduler is not None and follows_the_run(own.lr_scheduler) and length != run_steps
    if same and not is_stretched:
        return []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    old, old_schedule = at_step(before.optimizer, before.lr_scheduler, length, step, parameters)
    new, new_schedule = at_step(own.optimizer, own.lr_scheduler, run_steps, step, parameters)
    rates = [group["lr"] for group in optimizer.param_groups]
    if len(optimizer.param_groups) == len(old.param_groups) == len(new.param_groups):
        for group, before_it, asked in zip(optimizer.param_groups, old.param_groups, new.param_groups, strict=True):
            for name in asked.keys() - {"params"}:
                if name not in before_it or before_it[name] != asked[name]:
                    group[name] = asked[name]
    was, now = _state(old_schedule), _state(new_schedule)
    if isinstance(scheduler, ReduceLROnPlateau):  # what it has seen so far stays
        vars(scheduler).update({name: value for name, value in now.items() if name not in was or was[name] != value})
    elif was != now and scheduler is not None:
        scheduler.load_state_dict(now)
    lines = []
    if is_stretched and isinstance(scheduler, type(old_schedule)):
        name = type(scheduler).__name__
        lines.append(f"model.lr_scheduler: {name} was for {length:.0f} steps, is for {run_steps:.0f}")
    if rates != (after := [group["lr"] for group in optimizer.param_groups]):
        lines.append(f"the learning rate was {_rates(rates)}, is {_rates(after)}")
    return lines


def is_of_another_class(saved: Any, own: Any) -> bool:
    """Whether two recipes, or None, are of different classes."""
    return saved is not None and own is not None and class_of(saved) != class_of(own)


def _state(scheduler: Any) -> dict[str, Any]:
    return {} if scheduler is None else {name: value for name, value in vars(scheduler).items() if name != "optimizer"}


def _differences(name: str, was: Any, now: Any) -> Iterator[Change]:
    if _is_recipe(was) and _is_recipe(now) and class_of(was) == class_of(now):
        before, after = _all_arguments(was), _all_arguments(now)
        for argument in before.keys() | after.keys():
            yield from _differences(f"{name}.{argument}", before.get(argument), after.get(argument))
    elif was != now:
        yield Change(name, _short(was), _short(now))


def _short(value: Any) -> Any:
    return value["class_path"].rpartition(".")[2] if _is_recipe(value) else value


def _is_recipe(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"class_path", "init_args"}


def _all_arguments(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's arguments, and the defaults of those that it does not name: it may be older than they are."""
    cls = class_of(recipe)
    if not inspect.isclass(cls):
        return dict(recipe["init_args"])
    parameters = inspect.signature(cls).parameters.values()
    usual = {p.name: describe(p.default) for p in parameters if p.default is not inspect.Parameter.empty}
    return {**usual, **recipe["init_args"]}


def _is_overruled(change: Change, saved: Any, own: Mapping[str, Any]) -> bool:
    """Whether a changed option of the optimizer makes no difference, because the scheduler sets its value."""
    option, groups = change.name.rpartition(".")[2], []
    for recipe in (saved, own["optimizer"]):
        makers = build(Makers, {"optimizer": recipe, "lr_scheduler": own["lr_scheduler"]})
        weight = [nn.Parameter(torch.zeros(1))]
        groups.append(
            [at_step(makers.optimizer, made, ANY_LENGTH, 0, weight)[0] for made in (None, makers.lr_scheduler)]
        )
    (before, before_set), (after, after_set) = ([o.param_groups[0].get(option) for o in pair] for pair in groups)
    return before != after and before_set == after_set


def _why_not(saved: Any, own: Any) -> str | None:
    """Why an optimizer could not go on with the state of another of its class: tried on a few small weights."""

    def stepped(maker: Any) -> torch.optim.Optimizer:
        weights = [nn.Parameter(torch.ones(shape)) for shape in ((3,), (3, 3), (3, 3, 3, 3))]
        optimizer = maker(weights)
        _step(optimizer)
        return optimizer

    before, after = (build(Makers, {"optimizer": recipe}).optimizer for recipe in (saved, own))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state = stepped(before).state_dict()
            new = stepped(after)
        except Exception:  # of any type, of an optimizer that wants a GPU or a closure: nothing is known here
            return None
        groups = [{name: value for name, value in group.items() if name != "params"} for group in new.param_groups]
        try:
            new.load_state_dict(state)
            for group, values in zip(new.param_groups, groups, strict=True):
                group.update(values)
            _step(new)
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
    return None


def _step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()


def _rates(rates: list[Any]) -> str:
    return ", ".join(dict.fromkeys(f"{float(rate):.4g}" for rate in rates if not math.isnan(rate)))
