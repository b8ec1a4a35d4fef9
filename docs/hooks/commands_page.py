"""The options of every command, asked of the parsers themselves: ``<!-- commands -->`` on a page stands for them.

The commands are those of the command's own summary, so that a new one appears by itself.
"""

import inspect
import re
import types
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from docstrings import page_identifier, to_markdown
from jsonargparse import ArgumentParser
from torch import nn

import diffusion_lightning
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.objective import Times

MARK = "<!-- commands -->"

OFTEN = (
    *("max_epochs", "max_steps", "accelerator", "devices", "strategy", "num_nodes", "precision", "logger", "callbacks"),
    *("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches", "limit_val_batches"),
    *("log_every_n_steps", "default_root_dir"),
)
"""Options of Lightning's trainer that are shown before all the others are unfolded."""

COMPONENTS = {
    "--model.network": nn.Module,
    "--model.sde": diffusion_lightning.SDE,
    "--model.parameterization": diffusion_lightning.Parameterization,
    "--model.objective": diffusion_lightning.DenoisingScoreMatching,
    "--model.objective.times": Times,
    "--model.sampler": diffusion_lightning.Sampler,
    "--data": BatchDataModule,
}
"""Options that take a class, and the class that all of theirs have as parent."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands in the place of the mark."""
    return markdown.replace(MARK, _all_commands()) if MARK in markdown else markdown


@cache
def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command, in the order of the summary."""
    from diffusion_lightning.commands import cli

    return {command: cli.parser_of(command) for command in summary(cli.USAGE)}


def summary(usage: str) -> list[str]:
    """The commands that the command's own summary lists."""
    return re.findall(r"^  (\w+) ", usage, flags=re.M)


def options(parser: ArgumentParser) -> list[Action]:
    """What can be given on the command line, without ``--help`` and its like for single classes."""
    return [action for action in parser._actions if action.help != SUPPRESS and not name(action).endswith("help")]


def names(action: Action) -> list[str]:
    """How an option is written; of an argument without dashes, what stands for it."""
    return list(action.option_strings) or [action.dest]


def name(action: Action) -> str:
    """The first of its names that is no abbreviation."""
    return next((written for written in names(action) if written.startswith("--")), names(action)[0])


def _all_commands() -> str:
    from diffusion_lightning.commands import cli

    sections = [f"```text\n{cli.USAGE.strip()}\n```"]
    of_fit = {name(action) for action in options(parsers()["fit"])}
    for command, parser in parsers().items():
        sections.append(f"## lightning {command} {{#{command}}}")
        if parser.usage and "\n" in parser.usage:
            sections.append(f"```text\n{parser.usage.strip()}\n```")
        elif parser.description and "\n" not in parser.description:
            sections.append(parser.description)
        actions = options(parser)
        if command == "fit":
            sections += _fit(actions)
        elif any(name(action).startswith("--trainer.") for action in actions):
            own = [action for action in actions if name(action) not in of_fit]
            sections += ["All options of [`lightning fit`](#fit) for the trainer, the model and the data"]
            sections[-1] += ", and" if own else "."
            sections += [_table(own)] if own else []
        else:
            sections.append(_table(actions))
    return "\n\n".join(sections)


def _fit(actions: list[Action]) -> Iterable[str]:
    def below(prefix: str) -> list[Action]:
        return [action for action in actions if name(action).startswith(prefix)]

    trainer, model, data = below("--trainer."), below("--model."), below("--data")
    often = [action for option in OFTEN for action in trainer if name(action) == f"--trainer.{option}"]
    rest = [action for action in trainer if action not in often]
    yield "### The run"
    yield _table([action for action in actions if action not in [*trainer, *model, *data]])
    yield "### The trainer"
    yield "What Lightning's `Trainer` takes, `--trainer.…` takes. Used most:"
    yield _table(often)
    yield f'??? note "The other {len(rest)} options of the trainer"\n\n{_indented(_table(rest))}'
    yield "### The model"
    yield _table(model)
    yield "### The data"
    yield _table(data)
    yield "### What can stand for a class"
    yield (
        "A class of the package is named as it is called (`--model.sde VPSDE`), any other one by its import path. Its "
        "own arguments are options below it: `--model.sde.beta_max 10`. `--model.sde.help VPSDE` describes them, and "
        "so does the [reference](reference/index.md)."
    )
    yield from (_classes(option, base) for option, base in COMPONENTS.items())


def _classes(option: str, base: type) -> str:
    rows = []
    for public in diffusion_lightning.__all__:
        cls = getattr(diffusion_lightning, public)
        of_package = base is not nn.Module or diffusion_lightning._MODULE_OF[public] == "networks"
        if not (inspect.isclass(cls) and issubclass(cls, base) and of_package and not inspect.isabstract(cls)):
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, fail_untyped=False)
        given = [f"`{a.dest}={_default(a)}`" for a in options(parser) if "." not in a.dest and a.dest != "config"]
        rows.append(f"| [`{public}`][{page_identifier(public)}] | {', '.join(given) or '–'} |")
    return "\n".join([f"| `{option}` | its own arguments, with their defaults |", "|---|---|", *rows])


def _table(actions: Iterable[Action]) -> str:
    rows = [
        f"| {', '.join(f'`{written}`' for written in names(action))} | {_type(action)} "
        f"| {'(must be given)' if action.required else f'`{_default(action)}`'} | {_help(action)} |"
        for action in actions
    ]
    return "\n".join(["| option | type | default | what it does |", "|---|---|---|---|", *rows])


def _type(action: Action) -> str:
    hint = getattr(action, "_typehint", None) or action.type
    if action.nargs == 0:
        return "flag"
    if hint is None or not (inspect.isclass(hint) or get_origin(hint)):
        return "words" if name(action) == "--print_config" else "file"  # jsonargparse's own
    return _named(hint).replace("|", r"\|")


def _named(hint: Any) -> str:
    """A type in words; a class of objects by its name."""
    origin, given = get_origin(hint), get_args(hint)
    words: dict[Any, str] = {
        str: "text",
        Path: "text",
        int: "int",
        float: "float",
        bool: "true or false",
        type(None): "null",
    }
    if hint in words:
        return words[hint]
    if origin is Literal:
        return " or ".join(dict.fromkeys(f"`{value}`" for value in given))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for item in given for words in _named(item).split(" or ")))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Callable):  # type: ignore[arg-type]
        return _named(given[-1]) if given else "class"  # of what it makes
    if origin in (list, tuple, set) or getattr(origin, "__name__", "") in ("Sequence", "Iterable", "List"):
        inner = " or ".join(dict.fromkeys(_named(item) for item in given if item is not ...))
        return f"list of {inner}" if inner else "list"
    if origin is dict or hint is dict:
        return "mapping"
    return f"`{getattr(hint, '__name__', None) or str(hint)}`"


def _default(action: Action) -> str:
    value = action.default
    if value is None or value == SUPPRESS:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if inspect.isclass(value):
        return value.__name__
    class_path = value.get("class_path") if hasattr(value, "get") else None
    shown = str(class_path).split(".")[-1] if class_path else str(value)
    return re.sub(r"<(?:\w+\.)*(\w+) object at .*?>", r"\1", shown).replace("|", r"\|")


def _help(action: Action) -> str:
    """On one line, as Markdown, without what the other columns say."""
    text = " ".join(to_markdown(action.help or "").split())
    text = re.sub(r"\s*Default: `[^`]*`\.?$", "", text)
    return text.replace("%%", "%").replace("|", r"\|")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
