"""Whether data tell a network what it is to be told: by what both say of themselves, and in a batch."""

from typing import Any

from torch import Tensor, nn

from diffusion_lightning.conditions import ARGUMENTS, by_name, taken_by
from diffusion_lightning.training.in_words import dims, dtype, kind, option

WIDTHS = {name: argument for name, argument in ARGUMENTS.items() if name != "labels"}
"""Of conditions that are numbers."""

A = {"vector": "a vector", "picture": "a picture", "tokens": "tokens"}

UNITS = {"vector": "numbers", "picture": "channels", "tokens": "numbers each"}

SHAPES = {"vector": "(B, {})", "picture": "(B, {}, …)", "tokens": "(B, L, {})"}

AXES = {"vector": (2, 1), "picture": (3, 1), "tokens": (3, 2)}
"""The least number of axes, and the axis of the width; only pictures may have more."""

NAMED = 10
"""Of many classes, how many are told by name."""


def misfits(network: nn.Module, data: Any) -> tuple[list[str], list[str]]:
    """What is wrong with data for a network, by their attributes: what cannot be, and what should not be.

    Args:
        network: with ``num_classes``, ``condition_dim`` and so on, where it is told such.
        data: with attributes of the same names, where they tell such.

    Returns:
        Messages that name an option and what to type: of a network that asks for what the data do not have, and of one
        that has more classes than they, or is not told what was asked of the data.
    """
    wrong, odd = list[str](), list[str]()
    classes, own_classes = getattr(data, "num_classes", None), getattr(network, "num_classes", None)
    if own_classes and classes is not None and own_classes != classes:
        (wrong if own_classes < classes else odd).append(_about_classes(network, own_classes, data, classes))
    for name, width in WIDTHS.items():
        own = getattr(network, width, None)
        if not hasattr(data, width) or own == (given := getattr(data, width)):
            continue
        if own is None and (name in taken_by(network) or getattr(data, "condition", None) is None):
            continue  # a network that does not say how many; data that nobody has asked for it
        have = f"gives {A[name]} of {given} {UNITS[name]}" if given else f"gives no {name}"
        if own is None:
            way_out = f"{option(network, width, given)}, or leave data.condition out"
            odd.append(f"data.condition: {type(data).__name__} {have}, which the network is not told: give {way_out}")
        else:
            nothing = option(network, width, None)
            way_out = f"{option(network, width, given)}, or {nothing} to train without" if given else nothing
            wrong.append(f"model.network.{width}={own}: {type(data).__name__} {have}: give {way_out}")
    return wrong, odd


def check_told(network: nn.Module, condition: Any, count: int, name: str, is_raw: bool = False) -> None:
    """Raise a ValueError if a network cannot be told a batch's condition.

    Args:
        network: as above.
        condition: of the batch.
        count: of examples in it.
        name: of the data, for messages.
        is_raw: whether something is still to be added to the condition.
    """
    told = taken_by(network)
    if not told:
        return
    if told == ("labels",) and not isinstance(condition, dict):
        given = {"labels": condition}
    else:
        try:
            given = by_name(condition)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; {type(network).__name__} is told {', '.join(told)}") from error
    for each in told:
        if each in given:
            (_check_labels if each == "labels" else _check_numbers)(network, each, given[each], count, name)
        elif not is_raw:
            width = ARGUMENTS[each]
            raise ValueError(
                f"{name}: a batch has no {each}, which {type(network).__name__} is told ({width}="
                f"{getattr(network, width, None)}): give such, or {option(network, width, None)} to train without"
            )


def check_labels(labels: Tensor, classes: int, name: str) -> None:
    """Raise a ValueError if a label is none of a network's classes."""
    low, high = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: has labels from {low} to {high}: the network's are 0 … {classes - 1}")


def _check_labels(network: nn.Module, _: str, labels: Any, count: int, name: str) -> None:
    classes: int = network.num_classes  # type: ignore[assignment]
    needed = f"{type(network).__name__} has num_classes={classes} and takes the numbers of classes, int64 (B,)"
    way_out = f"give such, or {option(network, 'num_classes', None)} for a network that is told nothing"
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name}: its labels are {kind(labels)}: {needed}: {way_out}")
    if dtype(labels) not in ("int64", "int32") or labels.shape != (count,):
        raise ValueError(f"{name}: its labels are {dtype(labels)} {dims(labels)}: {needed}: {way_out}")
    check_labels(labels, classes, name)


def _check_numbers(network: nn.Module, each: str, value: Any, count: int, name: str) -> None:
    width: int | None = getattr(network, WIDTHS[each], None)
    least, axis = AXES[each]
    is_right = isinstance(value, Tensor) and value.is_floating_point() and len(value) == count
    is_right = is_right and (value.ndim == least or (each == "picture" and value.ndim > least))
    if is_right and (width is None or value.shape[axis] == width):
        return
    needed = f"floats {SHAPES[each].format('D' if width is None else width)}"
    if is_right:
        needed += f" for {WIDTHS[each]}={width}; give {option(network, WIDTHS[each], value.shape[axis])}"
    is_a = f"{dtype(value)} {dims(value)}" if isinstance(value, Tensor) else kind(value)
    raise ValueError(
        f"{name}: its {each} {'are' if each == 'tokens' else 'is'} {is_a}: {type(network).__name__} takes {needed}"
    )


def _about_classes(network: nn.Module, own: int, data: Any, classes: int) -> str:
    """The message for data of another number of classes than the network's own."""
    names = getattr(data, "class_names", None) or []
    names = names if len(names) == classes else []  # where the data are in groups, those of the classes
    listed = f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})" if names else ""
    labels = "groups" if getattr(getattr(data, "condition", None), "clusters", None) else "classes"
    have = f"has {classes} {labels}{listed}" if classes > 1 else "has no classes"
    wrong = "samples would be asked for of classes never seen" if own > classes else "the network has not one for each"
    nothing = option(network, "num_classes", None)
    right = f"{option(network, 'num_classes', classes)}, or {nothing} to train without" if classes > 1 else nothing
    return f"model.network.num_classes={own}: {type(data).__name__} {have}, and {wrong}: give {right}"
