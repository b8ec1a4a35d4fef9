"""Mistakes of the user as one line: which option, which value, and what would be right."""

import difflib
import inspect
import re
import sys

import diffusion_lightning

LARGEST_SEED = 2**32 - 1


class UsageError(ValueError):
    """The command cannot do what it was told to; the message is fit to be shown as it is."""


def check_seed(**options: int | None) -> None:
    """Raise a UsageError naming the first option that is no seed."""
    for name, seed in options.items():
        if seed is None or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"{name}={seed}: must be from 0 to {LARGEST_SEED}")


def explain(message: str, options: list[str] | None = None) -> str:
    """A parser's message on one line, with the nearest right word for what looks misspelt.

    Args:
        message: jsonargparse's, of one or more lines.
        options: the parser's, each with its dashes.
    """
    text = " ".join(_of_worker(message).split()).replace("<class '", "").replace("'>", "")
    text = text.replace("Parser key ", "option ")
    # where arguments of a class are given, and the class is not
    text = re.sub(r"Expected an instantiatable class, but \S*?(\w+) is abstract", r"name the class of \1, too", text)
    # a value tried against the alternatives of a type: the reasons are wanted, and the value if it is plain
    if union := re.search(r"Does not validate against any of the Union subtypes.*?Errors: - (.*)", text):
        reasons, _, value = union[1].partition(" Given value type: ")
        value = value.partition(" Given value: ")[2]
        # of a value inside the value: its own reasons stand beside those of the whole
        reasons = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: (- |or )?", "", reasons)
        # where a list of objects or a single one may be given, not being the other is no reason
        reasons = re.sub(r" - Not a valid subclass of .*?\(implicit class_path\)", "", reasons)
        plain = value and not any(mark in value for mark in ("Namespace(", "NestedArg("))
        got = f". Got value: {value}" if plain and "Got value" not in reasons else ""
        # null and a file that holds the value are alternatives that were not meant
        kept = [r for r in reasons.split(" - ") if not r.startswith(("Expected a NoneType", "Expected a path"))]
        # the word for a model's own guidance is no reason against another
        kept = [r for r in kept if not r.startswith("Expected a typing.Literal['own']")] or kept
        # where a class was meant, no other kind of value was
        kept = [r for r in kept if r.startswith("Problem with given class_path")] or kept
        text = text[: union.start()] + " or ".join(dict.fromkeys(kept)) + got
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: (- |or )?", "", text)
    a_list = r"Expected an? (?:list|tuple|collections\.abc\.\w+)\. Got value: ([^\s\[{]+)"
    text = re.sub(a_list, r"Expected a list, such as '[\1]'. Got value: \1", text)
    text = text.replace("Expected a dot import path string: own", "name the class, too: ClassifierFreeGuidance, …")
    # what every class and function could be given as is in the manual
    text = re.sub(r" Subclass types expect one of: .*?\(implicit class_path\)", "", text)
    text = re.sub(
        r"Type (?:typing|collections\.abc)\.Callable\[.*?\] expects a function or a callable class: ", "", text
    )
    text = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r" Add the import path to import_path_allowlist in set_parsing_settings to allow it\.", "", text)
    text = re.sub(r"- Expected a path but \S+ either not accessible or invalid - ", "", text)
    if 'option "config": File does not exist' in text and "lightning configs" not in text:
        text += " (lightning configs lists those that come with the package)"
    if "(did you mean" in text:  # an error in a nested parser comes by here once for each parser around it
        return text
    if match := re.search(r"unrecognized arguments?: (\S+)", text, re.IGNORECASE):
        return f"unknown option {match[1]}{_nearest(match[1].split('=')[0], options or [])}"
    if match := re.search(r"Option '(\w+)' is not accepted", text):
        return text + _nearest(match[1], _all_arguments())
    if match := re.search(r"Expected a dot import path string: (\w+)|No module named '(\w+)", text):
        return text + _nearest(match[1] or match[2], diffusion_lightning.__all__)
    return text


def _of_worker(message: str) -> str:
    """The message itself, where torch has wrapped the traceback of a worker process or thread around it."""
    wrapped = re.match(r"Caught (\w+) in .*\nOriginal Traceback", message)
    if wrapped is None:
        return message
    # the last one: those before it are of the errors that led to it
    head = rf"(?:\w+\.)*{wrapped[1]}(?:: |$)"
    return re.split(rf"^{head}", message, flags=re.MULTILINE)[-1].strip() or wrapped[1]


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _all_arguments() -> list[str]:
    """The names of all constructor arguments of the package's classes that are loaded: one of these is meant."""
    known, package = set(diffusion_lightning.__all__), diffusion_lightning.__name__
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{package}.")]
    classes = [item for module in modules for item in vars(module).values() if inspect.isclass(item)]
    ours = {cls for cls in classes if cls.__name__ in known and cls.__module__.startswith(f"{package}.")}
    return sorted({argument for cls in ours for argument in inspect.signature(cls).parameters})
