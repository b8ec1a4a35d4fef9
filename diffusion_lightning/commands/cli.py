"""The `lightning` command: each word has a file of its own, loaded when it is asked for; a failure is one line."""

import difflib
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from diffusion_lightning.commands.manual import USAGE, version_line
from diffusion_lightning.commands.usage import UsageError, explain
from diffusion_lightning.home import give_home
from diffusion_lightning.messages import is_lost_contact, is_out_of_memory

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

LIGHTNINGS = ("fit", "validate", "test", "predict")
"""The commands that are Lightning's: ``lightning_cli.py``."""

COMMANDS = (
    "sample",
    "restore",
    "interpolate",
    "demo",
    "evaluate",
    "likelihood",
    "report",
    "export",
    "configs",
    "completion",
)
"""The others. Each is a module beside this one: ``NAME_command(args)`` runs it, ``NAME_parser()`` has its options."""

# what a user's mistake raises; any other type is a mistake of ours, whose traceback must not be lost
EXPECTED = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


def main(args: list[str] | None = None) -> None:
    """Run the `lightning` command.

    Args:
        args: the command line without the program's name; the process's own if left out.
    """
    given = sys.argv[1:] if args is None else args
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(version_line())
        return
    try:
        give_home()
        _check_command(given[0])
        with _silent_interrupt():
            run = _load(given[0], args)
        run(given[1:])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if "--debug" in given:
            raise
        print(f"lightning: error: {_line_of(error, given[0])}", file=sys.stderr)
        sys.exit(1)


def parser_of(command: str) -> "ArgumentParser":
    """The parser of a command's options."""
    if command in COMMANDS:
        return getattr(import_module(f"{__package__}.{command}"), f"{command}_parser")()
    from jsonargparse import capture_parser

    from diffusion_lightning.commands.lightning_cli import DiffusionCLI

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, that it is given arguments beside those of the process
        whole = capture_parser(DiffusionCLI, [command])
    assert whole._subcommands_action is not None
    return whole._subcommands_action._name_parser_map[command]


def _load(command: str, args: list[str] | None) -> Callable[[list[str]], object]:
    """What runs a command, once all that it needs is loaded; called with what follows on the command line."""
    if command in COMMANDS:
        return getattr(import_module(f"{__package__}.{command}"), f"{command}_command")
    from diffusion_lightning.commands.lightning_cli import run_subcommand

    return lambda _: run_subcommand(args)  # LightningCLI reads the subcommand itself, if it can from the process


@contextmanager
def _silent_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once, as nothing has begun.

    Not by an exception, which may be raised within any of the libraries and be taken for a failure of theirs.
    """
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _check_command(word: str) -> None:
    """Raise a UsageError if the first word of a command line is neither a command nor an option."""
    known = (*LIGHTNINGS, *COMMANDS)
    if word not in known and not word.startswith("-"):
        nearest = difflib.get_close_matches(word, known, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise UsageError(f"{word!r} is no command{hint}: must be one of {', '.join(known)}")


def _line_of(error: Exception, command: str) -> str:
    """What a failure is told as; the traceback of a mistake of ours is kept in a file."""
    if is_lost_contact(error):
        return (
            "lost contact with another process of this run: it died, and its message is above or on its machine, "
            "or stood still for longer than the strategy's timeout; resume with --ckpt_path last"
        )
    if is_out_of_memory(error):
        option = "--data.batch_size" if command in LIGHTNINGS else "--batch_size"
        reason = str(error).splitlines()[0] if str(error) else "no memory is left"
        return f"out of memory: give a smaller {option}, or run it where there is more of it ({reason})"
    line = str(error) if isinstance(error, UsageError) else explain(str(error)) or type(error).__name__
    if isinstance(error, EXPECTED):
        return line
    with tempfile.NamedTemporaryFile("w", prefix="lightning-", suffix=".log", delete=False) as log:
        traceback.print_exc(file=log)
    return f"{type(error).__name__}: {line} (traceback: {log.name})"
