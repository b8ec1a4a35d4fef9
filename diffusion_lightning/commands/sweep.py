"""What is judged: samplers with their numbers of steps, guidance with its weights; and what they are called."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.samplers.ode import AdaptiveMethod
from diffusion_lightning.sde import SDE
from diffusion_lightning.training.guided import name_of, with_weight
from diffusion_lightning.training.recipe import describe


class Way(NamedTuple):
    """How samples are drawn."""

    sampler: Sampler
    guidance: GuidanceCallable | None = None

    @property
    def name(self) -> str:
        """Of the sampler and of what steers it."""
        return ", ".join(filter(None, (label(self.sampler), name_of(self.guidance))))


def ways_of(
    samplers: Sequence[Sampler], guidance: GuidanceCallable | None, weights: Sequence[float] | None
) -> list[Way]:
    """Each of the samplers with this guidance, or with each of its weights.

    Args:
        samplers: as :func:`samplers_of` gives them.
        guidance: None for none, which with weights is the classifier-free one.
        weights: of it; those that come again are left out.

    Raises:
        ValueError: if the guidance has no weight.
    """
    makers = [guidance] if weights is None else [with_weight(guidance, weight) for weight in dict.fromkeys(weights)]
    return [Way(sampler, maker) for sampler in samplers for maker in makers]


def samplers_of(base: Sequence[Sampler], steps: Sequence[int] | None, sde: SDE, option: str) -> list[Sampler]:
    """Those to be judged: each as it is, or with each number of steps.

    Args:
        base: the samplers.
        steps: numbers of steps; those that come again are left out.
        sde: the process that they are to reverse.
        option: where the samplers are from, for messages.

    Raises:
        UsageError: if a sampler takes no number of steps, or does not fit the process.
    """
    counts = list(dict.fromkeys(steps or []))
    for sampler in base:
        chooses = getattr(sampler, "method", None) in get_args(AdaptiveMethod)
        if counts and (chooses or "steps" not in inspect.signature(type(sampler)).parameters):
            raise UsageError(f"{option}: {label(sampler)} takes no number of steps: leave it out of --sweep.steps")
    samplers = [_with_steps(sampler, count) for sampler in base for count in counts] if counts else list(base)
    for sampler in samplers:
        try:
            sampler.check(sde)
        except ValueError as error:
            raise UsageError(f"{option}: {type(sampler).__name__}: {error}") from error
    return samplers


def label(sampler: Sampler, with_steps: bool = True) -> str:
    """Such as ``DPMSolverPlusPlus(steps=8, order=3)``: its steps, and what is not by default."""
    parameters = inspect.signature(type(sampler)).parameters
    settings = describe(sampler)["init_args"]
    chooses = settings.get("method") in get_args(AdaptiveMethod)
    shown = [
        f"{name}={_short(value)}"
        for name, value in settings.items()
        if (with_steps and not chooses if name == "steps" else value != describe(parameters[name].default))
    ]
    return type(sampler).__name__ + (f"({', '.join(shown)})" if shown else "")


def _with_steps(sampler: Sampler, steps: int) -> Sampler:
    changed = copy.copy(sampler)
    changed.steps = steps  # type: ignore[attr-defined]
    return changed


def _short(value: Any) -> str:
    return value["class_path"].rpartition(".")[2] if isinstance(value, dict) else str(value)
