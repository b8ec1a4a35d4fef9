"""Serialization: objects as plain data, so that a checkpoint can say how to build its module without holding any code.

The recipe of an object is ``{"class_path": …, "init_args": {…}}``, the notation of LightningCLI's YAML files, and it is
read back by the same library, jsonargparse, against the type annotations of whatever takes the object as argument.
"""

import inspect
from collections.abc import Collection, Sequence, Set
from copy import deepcopy
from decimal import Decimal
from enum import Enum
from functools import partial
from numbers import Integral, Real
from pathlib import PurePath
from pkgutil import resolve_name
from types import WrapperDescriptorType
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from torch import Tensor


def plain(value: Any, tensors: bool = True) -> Any:
    """A value in Python's own types where it is of a library's: its numbers (NumPy's, tensors of none but one number,
    ``Decimal``, …) as int, float or bool, the members of an enum as their values, paths as texts; in lists, tuples,
    dicts and the arguments of a ``functools.partial`` likewise. Anything else is returned as it is.

    What an optimizer or a schedule is given, it writes into its checkpoints, and those hold nothing of other libraries.

    Args:
        value: any.
        tensors: whether tensors are changed, too.
    """
    if value is None or type(value) in (bool, int, float, str) or inspect.isclass(value):
        return value
    if isinstance(value, Enum):
        return plain(value.value, tensors)
    if isinstance(value, Tensor) and not tensors:
        return value
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, PurePath | str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real | Decimal):
        return float(value)
    if type(value) in (list, tuple):
        return type(value)(plain(item, tensors) for item in value)
    if type(value) is dict:
        return {plain(key): plain(item, tensors) for key, item in value.items()}
    if isinstance(value, partial):
        return partial(value.func, *map(plain, value.args), **plain(value.keywords))
    return value


def describe(value: Any, name: str = "", by_name: Collection[type] = ()) -> Any:
    """The recipe of an object; plain values are their own recipe, lists and dicts are described item by item.

    An object's constructor arguments are read from its attributes of the same names, or of those names with a leading
    underscore where a method has the name. A class, and a ``functools.partial`` of it, describe as that class. Values
    of other libraries' types become Python's (:func:`plain`).

    Args:
        value: what is described.
        name: of the argument that it is, for messages.
        by_name: enums whose members are written as their names, as an argument of such a type is read.

    Raises:
        ValueError: if a constructor argument is not kept as an attribute, or there is what no recipe can hold, such as
            a function, an array or a set.
    """
    if isinstance(value, Enum) and isinstance(value, tuple(by_name)):
        return value.name
    if isinstance(value, list | tuple):
        return [describe(item, name, by_name) for item in value]
    if isinstance(value, dict):
        return {plain(key): describe(item, name, by_name) for key, item in value.items()}
    if not isinstance(value, partial):
        value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if inspect.isclass(value) or isinstance(value, partial) or inspect.isroutine(value):
        return _recipe(*class_behind(value))
    cls = type(value)
    if not _is_made_in_python(value):
        instead = "a list" if hasattr(value, "tolist") or isinstance(value, Set | Sequence) else "a number or a text"
        raise ValueError(
            f"{name + '=' if name else ''}{' '.join(repr(value).split()):.60}: is of type {cls.__name__}, which "
            f"checkpoints cannot hold: give {instead}"
        )
    return _recipe(cls, {argument: _argument(value, argument) for argument in _parameters(cls)})


def class_behind(maker: Any) -> tuple[type, dict[str, Any]]:
    """The class that a class, or a ``functools.partial`` of it, makes an object of, and the arguments that are bound.

    Raises:
        ValueError: if it is a function.
    """
    if inspect.isclass(maker):
        return maker, {}
    if isinstance(maker, partial):
        # jsonargparse binds the class behind an instantiating function, a user binds the class itself
        made = [item for item in (maker.func, *maker.args) if inspect.isclass(item)]
        if len(made) == 1 and maker.args and made[0] is maker.func:
            raise ValueError(f"functools.partial({made[0].__name__}, …): give its arguments by name, not by position")
        if len(made) == 1:
            return made[0], maker.keywords
    name = getattr(maker, "__qualname__", maker)
    raise ValueError(f"{name} is a function, which checkpoints cannot hold: give functools.partial(a class, …)")


def class_of(recipe: dict[str, Any]) -> Any:
    """What a recipe's ``class_path`` names; the path itself if it names nothing here."""
    try:
        return resolve_name(recipe["class_path"])
    except (ImportError, AttributeError, ValueError):
        return recipe["class_path"]


def _is_made_in_python(value: object) -> bool:
    """Whether its constructor is not that of a compiled type, which does not keep what it was given."""
    init, new = type(value).__init__, type(value).__new__  # type: ignore[misc]
    plain_class = new is object.__new__ and hasattr(value, "__dict__")
    return plain_class or inspect.isfunction(new) or not isinstance(init, WrapperDescriptorType)


def build(cls: type, arguments: dict[str, Any]) -> Any:
    """Make a ``cls`` from a recipe's ``init_args``; each nested class must be one that the argument's type allows.

    Functions are not called, not even those that return such a type.

    Raises:
        ValueError: if the recipe does not fit the constructor.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "made", fail_untyped=False)
    try:
        # a copy, for jsonargparse writes into the lists that it reads
        parsed = parser.parse_object({"made": deepcopy(arguments)})
        check_classes(parsed.as_dict())
        return parser.instantiate(parsed)["made"]
    except Exception as error:
        raise ValueError(f"cannot build {cls.__name__} from its recipe: {' '.join(str(error).split())}") from error


def check_classes(recipe: Any) -> None:
    """Raise a ValueError if a class path, which the parser has found to exist, is that of a function."""
    if isinstance(recipe, list | tuple):
        recipe = dict(enumerate(recipe))
    if isinstance(recipe, dict):
        path = recipe.get("class_path")
        named = path if recipe.keys() <= {"class_path", "init_args", "dict_kwargs"} else None
        if isinstance(named, str) and not inspect.isclass(resolve_name(named)):
            raise ValueError(f"{path} is a function: must be a class")
        for item in recipe.values():
            check_classes(item)


def _recipe(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: describe(item, name, _enums(cls, name)) for name, item in arguments.items()},
    }


def _enums(cls: type, name: str) -> list[type]:
    """The enums in the annotation of a constructor's argument."""
    for base in inspect.getmro(cls):
        try:
            hints = get_type_hints(vars(base).get("__init__"))
        except (NameError, TypeError):  # of types that only a type checker knows, or there is no such constructor
            continue
        if name in hints:
            found, left = [], [hints[name]]
            while left:
                hint = left.pop()
                left += get_args(hint)
                if inspect.isclass(hint) and issubclass(hint, Enum):
                    found.append(hint)
            return found
    return []


def _parameters(cls: type) -> list[str]:
    """Names of the constructor's arguments; ``**kwargs`` stands for those of the parent class."""
    named = []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named += [name for name in _parameters(cls.__mro__[1]) if name not in named]
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            named.append(parameter.name)
    return named


def _argument(owner: object, name: str) -> Any:
    for attribute in (name, f"_{name}"):
        value = getattr(owner, attribute, inspect.Parameter.empty)
        if value is not inspect.Parameter.empty and not inspect.ismethod(value):
            return value
    raise ValueError(
        f"{type(owner).__name__} does not keep its constructor argument {name!r}: "
        f"add `self.{name} = {name}` to its __init__, so that checkpoints can rebuild it"
    )
