"""Lists on a command line as one types them: ``--labels 3``, ``--labels 3 8`` and ``--labels 3,8``."""

import re
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

FILES = ("--config", "-c")
"""Options that may be given several times, once for each value."""


def is_list(kind: Any) -> bool:
    """Whether a type is of lists or tuples alone, or of nothing beside them."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [part for part in get_args(kind) if part is not NoneType]
        return bool(kinds) and all(map(is_list, kinds))
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Sequence) and not issubclass(origin, str | bytes)


def with_lists(args: Sequence[str], lists: Sequence[str]) -> Iterator[str]:
    """A command line with the values of list options in brackets, and with ``--config`` before each of its files.

    Args:
        args: options and their values; no positional arguments but before all options.
        lists: the options, with their dashes, that take a list.

    Raises:
        ValueError: naming the first word that follows the value of an option which takes one; it says the right form.
    """
    rest = list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("-"):
            yield option + equals + value
            continue
        values = [value] if equals else []
        while rest and not re.match(r"-(?![\d.])", rest[0]):
            values.append(rest.pop(0))
        if option in lists and values and not (len(values) == 1 and re.match(r"\[|null$", values[0])):
            yield from (option, f"[{','.join(word.strip(',') for word in values)}]")
        elif option in FILES and len(values) > 1:
            yield from (word for file in values for word in (option, file))
        elif len(values) > 1:
            raise ValueError(
                f"{values[1]!r} follows the value of {option}: several values are a list, "
                f"{option} '[{','.join(values)}]', and a value with spaces is quoted, {option} '{' '.join(values)}'"
            )
        elif equals:
            yield f"{option}={value}"
        else:
            yield from (option, *values)
