"""Mistakes of the user as one line: which option, which value, and what would be right."""

import difflib
import inspect
import re
from typing import Any, NoReturn

import torch
from lightning.pytorch.cli import LightningArgumentParser

import diffusion_lightning
from diffusion_lightning.module import ScoreModule


class UsageError(ValueError):
    """The command cannot do what it was told to; the message is fit to be shown as it is."""


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are a :class:`UsageError` of one line with a suggestion."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # an abbreviation would let a misspelt option pass as another one
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        raise UsageError(explain(message, options)) from ex


def load_on_device(ckpt_path: str, device: str | None) -> ScoreModule:
    """A checkpoint's module on the device of a ``--device`` option: by default the first GPU, if there is any.

    Raises:
        UsageError: if there is no such device.
        ValueError, OSError: if the checkpoint cannot be used.
    """
    module = ScoreModule.load_from_checkpoint(ckpt_path)
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return module.to(torch.device(wanted))
    except (RuntimeError, AssertionError) as error:  # of the latter type if torch was built without it
        raise UsageError(f"device={wanted!r}: cannot be used here: {str(error).splitlines()[0]}") from error


def explain(message: str, options: list[str] | None = None) -> str:
    """A parser's message on one line, with the nearest right word for what looks misspelt.

    Args:
        message: jsonargparse's, of one or more lines.
        options: the parser's, each with its dashes.
    """
    text = " ".join(message.split()).replace("<class '", "").replace("'>", "")
    text = text.replace("Parser key ", "option ")
    # a value tried against the alternatives of a type: the reasons are wanted, and the value if it is plain
    if union := re.search(r"Does not validate against any of the Union subtypes.*?Errors: - (.*)", text):
        reasons, _, value = union[1].partition(" Given value type: ")
        value = value.partition(" Given value: ")[2]
        # where a list of objects or a single one may be given, not being the other is no reason
        reasons = re.sub(r" - Not a valid subclass of .*?\(implicit class_path\)", "", reasons)
        plain = value and not any(mark in value for mark in ("Namespace(", "NestedArg("))
        got = f". Got value: {value}" if plain and "Got value" not in reasons else ""
        # null and a file that holds the value are alternatives that were not meant
        kept = [r for r in reasons.split(" - ") if not r.startswith(("Expected a NoneType", "Expected a path"))]
        text = text[: union.start()] + " or ".join(dict.fromkeys(kept)) + got
    text = re.sub(r"- Expected a path but \S+ either not accessible or invalid - ", "", text)
    if "(did you mean" in text:  # an error in a nested parser comes by here once for each parser around it
        return text
    if match := re.search(r"unrecognized arguments?: (\S+)", text, re.IGNORECASE):
        return f"unknown option {match[1]}{_nearest(match[1].split('=')[0], options or [])}"
    if match := re.search(r"Option '(\w+)' is not accepted", text):
        return text + _nearest(match[1], _all_arguments())
    if match := re.search(r"Expected a dot import path string: (\w+)|No module named '(\w+)", text):
        return text + _nearest(match[1] or match[2], diffusion_lightning.__all__)
    return text


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _all_arguments() -> list[str]:
    """The names of all constructor arguments of the package."""
    classes = [getattr(diffusion_lightning, name) for name in diffusion_lightning.__all__]
    return sorted({argument for cls in classes for argument in inspect.signature(cls).parameters})
