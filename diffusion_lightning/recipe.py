"""Objects as plain data, so that a checkpoint can say how to build its module without holding any code.

The recipe of an object is ``{"class_path": …, "init_args": {…}}``, the notation of LightningCLI's YAML files, and it is
read back by the same library, jsonargparse, against the type annotations of whatever takes the object as argument.
"""

import inspect
from copy import deepcopy
from functools import partial
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser


def describe(value: Any) -> Any:
    """The recipe of an object; plain values are their own recipe, lists and dicts are described item by item.

    An object's constructor arguments are read from its attributes of the same names, or of those names with a leading
    underscore where a method has the name. A class, and a ``functools.partial`` of it, describe as that class.

    Raises:
        ValueError: if a constructor argument is not kept as an attribute, or there is a function.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if inspect.isclass(value) or isinstance(value, partial) or inspect.isroutine(value):
        return _recipe(*class_behind(value))
    return _recipe(type(value), {name: _argument(value, name) for name in _parameters(type(value))})


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
        _check_classes(parsed.as_dict())
        return parser.instantiate(parsed)["made"]
    except Exception as error:
        raise ValueError(f"cannot build {cls.__name__} from its recipe: {' '.join(str(error).split())}") from error


def _check_classes(recipe: Any) -> None:
    """Raise a ValueError if a class path, which the parser has found to exist, is that of a function."""
    if isinstance(recipe, list | tuple):
        recipe = dict(enumerate(recipe))
    if isinstance(recipe, dict):
        path = recipe.get("class_path")
        named = path if recipe.keys() <= {"class_path", "init_args", "dict_kwargs"} else None
        if isinstance(named, str) and not inspect.isclass(resolve_name(named)):
            raise ValueError(f"{path} is a function: must be a class")
        for item in recipe.values():
            _check_classes(item)


def _recipe(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: describe(item) for name, item in arguments.items()},
    }


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
