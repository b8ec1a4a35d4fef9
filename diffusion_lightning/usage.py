"""Mistakes of the user as one line: which option, which value, and what would be right."""

import difflib
import inspect
import re
from importlib import import_module
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import diffusion_lightning


class UsageError(ValueError):
    """The command cannot do what it was told to."""


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are a :class:`UsageError` of one line with a suggestion."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for option in self._option_string_actions if option.startswith("--")]
        raise UsageError(explain(message, options)) from ex


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, with its type where it says nothing."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def explain(message: str, options: list[str]) -> str:
    """A parser's message on one line, with the nearest right word for what looks misspelt.

    Args:
        message: jsonargparse's, of one or more lines.
        options: the parser's, each with its dashes.
    """
    text = " ".join(message.split())
    text = text.replace("<class '", "").replace("'>", "")
    if union := re.search(r"^(.*?)Does not validate against any of the Union subtypes.*? - (.*?) Given value", text):
        # of the reasons why each alternative was refused, one about a named class is what the user meant
        reasons = union[2].split(" - ")
        text = union[1] + next((reason for reason in reasons if "class_path" in reason), "; ".join(reasons))
    if match := re.search(r"unrecognized arguments?: (\S+)", text, re.IGNORECASE):
        return f"unknown option {match[1]}{_nearest(match[1].split('=')[0], options)}"
    if match := re.search(r"class_path '([\w.]+)'.*?Option '(\w+)' is not accepted", text):
        return f"{text}{_nearest(match[2], _init_args(match[1]))}"
    if match := re.search(r"(?:Expected a dot import path string: |Unable to import|No module named )'?(\w+)", text):
        return f"{text}{_nearest(match[1], diffusion_lightning.__all__)}"
    return text


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _init_args(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)
