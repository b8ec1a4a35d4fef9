"""What steers a model's samples: how a choice of guidance is spelt, and the denoiser that it makes of the model's.

Guidance is chosen as an optimizer is: by what makes it of a denoiser, so that it is plain data in configs and in
checkpoints. A worse model's place in it is taken by the path of its checkpoint, which is read here.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import nn

from diffusion_lightning.conditions import taken_by
from diffusion_lightning.denoiser import Denoiser, NetworkDenoiser
from diffusion_lightning.guidance import ClassifierFreeGuidance, Guidance, GuidanceCallable
from diffusion_lightning.messages import warn
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.averaged import load_averaged
from diffusion_lightning.training.recipe import class_behind

GuidanceChoice: TypeAlias = GuidanceCallable | Literal["own"] | None
"""The model's own guidance, which may be none; none; or what makes it of the model's denoiser."""


class Steering:
    """Makes guided denoisers of one model; what they take from disk is read once."""

    def __init__(self) -> None:
        self._worse: dict[str, tuple[NetworkDenoiser, Sequence[int] | None]] = {}
        self._has_warned = self._is_told_idle = False

    def __call__(
        self,
        denoiser: NetworkDenoiser,
        maker: GuidanceCallable | None,
        shape: Sequence[int] | None = None,
        condition_dropout: float | None = None,
    ) -> Denoiser:
        """The denoiser to sample from.

        Args:
            denoiser: the model's, which is returned as it is if nothing is to steer it.
            maker: of the guidance.
            shape: of one example; None if it is not known.
            condition_dropout: that the model was trained with; None if it is not known.

        Raises:
            ValueError: naming the argument, if it is out of its range, the guidance would change nothing, or the worse
                model is of another process, shape or condition.
            FileNotFoundError: if the worse model's checkpoint is not there.
        """
        if maker is None:
            return denoiser
        if path := worse_path(maker):
            if path not in self._worse:
                self._worse[path] = _load_worse(path, maker)
            worse, its_shape = self._worse[path]
            _check_alike(path, (worse, its_shape), (denoiser, shape))
            maker = _bound(maker, worse=worse.to(denoiser.device))
        made = _made(maker, denoiser)
        if isinstance(made, ClassifierFreeGuidance):
            _check_conditions(denoiser.network)
            if condition_dropout == 0 and not made.is_neutral and not self._has_warned:
                self._has_warned = True
                warn(
                    "guidance: the model was trained with condition_dropout=0 and has not learnt to do without its "
                    "condition, which ClassifierFreeGuidance compares with: train with --model.condition_dropout 0.1"
                )
        return made

    def tell_if_idle(self, denoiser: Denoiser, sampler: Sampler) -> None:
        """Warn, once, of a denoiser whose interval held none of the steps by which samples were drawn from it."""
        if not isinstance(denoiser, Guidance) or denoiser.is_neutral or denoiser.has_steered or self._is_told_idle:
            return
        if denoiser.interval is not None:
            self._is_told_idle = True
            low, high = denoiser.interval
            warn(
                f"guidance.interval=[{low:g}, {high:g}]: no step of {type(sampler).__name__} was at a noise level in "
                "it, and nothing was guided: give more steps, or a wider interval"
            )


def check_own(maker: GuidanceCallable | None, denoiser: NetworkDenoiser) -> None:
    """Raise a ValueError if a module cannot have this guidance as its own; a worse model on disk is not read.

    Raises:
        ValueError: as :class:`Steering` does, and if no checkpoint could hold it.
    """
    if maker is None:
        return
    for name, value in class_behind(maker)[1].items():
        if isinstance(value, nn.Module):
            way_out = "give the path of its checkpoint, a text" if name == "worse" else "give it to sample() instead"
            raise ValueError(
                f"guidance.{name}: is a {type(value).__name__}, whose weights the module's checkpoints would not hold: "
                f"{way_out}"
            )
    made = _made(_bound(maker, worse=denoiser) if worse_path(maker) else maker, denoiser)
    if isinstance(made, ClassifierFreeGuidance):
        _check_conditions(denoiser.network)


def worse_path(maker: Any) -> str | None:
    """The path that stands for a worse model; None if there is no such model, or it is there itself."""
    worse = getattr(maker, "keywords", {}).get("worse")
    return worse if isinstance(worse, str) else None


def holds_values_alone(maker: GuidanceCallable) -> bool:
    """Whether it is made of plain values, and needs no other network or function."""
    return not any(callable(value) for value in class_behind(maker)[1].values()) and worse_path(maker) is None


def with_weight(maker: GuidanceCallable | None, weight: float) -> GuidanceCallable:
    """The same guidance of another weight; classifier-free if it is None.

    Raises:
        ValueError: if it has no weight.
    """
    maker = maker if maker is not None else ClassifierFreeGuidance
    cls = class_behind(maker)[0]
    if "weight" not in inspect.signature(cls).parameters:
        raise ValueError(f"guidance={cls.__name__}: has no weight: give ClassifierFreeGuidance or AutoGuidance")
    return _bound(maker, weight=weight)


def name_of(maker: GuidanceCallable | None) -> str | None:
    """Such as ``ClassifierFreeGuidance(weight=2, interval=[0.2, 3])``: its strength, and what is not by default."""
    if maker is None:
        return None
    try:
        cls, given = class_behind(maker)
    except ValueError:  # a function, which can be used, and not kept
        return getattr(maker, "__name__", type(maker).__name__)
    parameters = inspect.signature(cls).parameters
    shown = [
        f"{name}={_short(given.get(name, parameter.default))}"
        for name, parameter in parameters.items()
        if name in ("weight", "scale") or (name in given and given[name] != parameter.default)
    ]
    return f"{cls.__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return type(value).__name__ if isinstance(value, nn.Module) else str(value)


def _bound(maker: Any, **arguments: Any) -> GuidanceCallable:
    return partial(maker, **arguments)


def _made(maker: GuidanceCallable, denoiser: NetworkDenoiser) -> Denoiser:
    try:
        made: Any = maker(denoiser)
    except ValueError as error:  # begins with the argument's name
        raise ValueError(f"guidance.{error}") from error
    if not isinstance(made, Denoiser):
        raise ValueError(f"guidance: makes a {type(made).__name__}: must make a Denoiser of a Denoiser")
    return made


def _load_worse(path: str, maker: Any) -> tuple[NetworkDenoiser, Sequence[int] | None]:
    """The worse model, and the shape of its examples."""
    try:
        denoiser, checkpoint = load_averaged(path)
        return denoiser, checkpoint["hyper_parameters"]["shape"]
    except (OSError, ValueError) as error:
        reason = str(error).replace(f"ckpt_path={path!r}: ", "", 1)
        other = f"--guidance AutoGuidance --guidance.worse FILE --guidance.weight {maker.keywords.get('weight', 1):g}"
        raise type(error)(f"guidance.worse={path!r}: {reason} ({other} names another, --guidance null none)") from error


def _check_alike(path: str, *models: tuple[NetworkDenoiser, Sequence[int] | None]) -> None:
    """Raise a ValueError if the first model cannot be asked what the second one is; their processes are compared by the
    guidance itself.
    """
    its_shape, shape = (tuple(shape) if shape is not None else None for _, shape in models)
    if its_shape is not None and shape is not None and its_shape != shape:
        raise ValueError(f"guidance.worse={path!r}: is of examples of shape {its_shape}: must be {shape}, as the model")
    its_told, told = (
        " and ".join(f"{denoiser.num_classes} classes" if name == "labels" else name for name in names) or "nothing"
        for denoiser, names in ((denoiser, taken_by(denoiser.network)) for denoiser, _ in models)
    )
    if its_told != told:
        raise ValueError(f"guidance.worse={path!r}: is told of {its_told}: must be of {told}, as the model")


def _check_conditions(network: nn.Module) -> None:
    if not taken_by(network):
        raise ValueError(
            f"guidance=ClassifierFreeGuidance: {type(network).__name__} is told of no condition, and it would change "
            "nothing: give --guidance null (--model.guidance null in training), or AutoGuidance"
        )
