"""`lightning completion`: what a shell needs to complete the commands and options.

The options stand in ``options.json``, for the parsers that know them take seconds to make. This writes it anew:

    python -m diffusion_lightning.commands.completion
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lightning.commands.parser import OneLineParser

OPTIONS = Path(__file__).with_name("options.json")
"""Of every command, as :func:`options_of_parsers` gave them."""

SHELLS = ("bash", "zsh", "tcsh")

FILES = ("--config", "--ckpt_path", "--output", "--reference", "--from", "--to")
"""Options whose values a shell completes as files."""


def completion_command(args: list[str]) -> None:
    """Print a script by which a shell completes the commands and options.

    Args:
        args: the command line after ``lightning completion``.

    Raises:
        UsageError: for another shell.
    """
    # the parser takes longer to load than all the rest
    shell = args[0] if len(args) == 1 and args[0] in SHELLS else completion_parser().parse_args(args).shell
    import shtab

    tree = argparse.ArgumentParser(prog="lightning", add_help=False)
    commands = tree.add_subparsers()
    for name, known in json.loads(OPTIONS.read_text(encoding="utf-8"))["commands"].items():
        command = commands.add_parser(name, add_help=False, help=known["help"])
        for names, meaning in known["options"].items():
            option = command.add_argument(*names.split(), help=meaning)
            if set(names.split()) & set(FILES):
                option.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(tree, shell))


def completion_parser() -> "OneLineParser":
    """The options of ``lightning completion``."""
    from typing import Literal

    from diffusion_lightning.commands.parser import OneLineParser

    parser = OneLineParser(
        prog="lightning completion",
        description="Print what a shell needs to complete the commands and options.",
    )
    parser.add_argument("shell", type=Literal["bash", "zsh", "tcsh"], help="For which shell.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def options_of_parsers() -> dict[str, Any]:
    """Every command with its options' names and what they say of themselves, asked of the parsers; takes seconds."""
    from importlib.metadata import version

    from diffusion_lightning.commands.cli import COMMANDS, LIGHTNINGS, parser_of

    commands = {}
    for name in (*LIGHTNINGS, *COMMANDS):
        parser = parser_of(name)
        shown = [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
        options = {" ".join(action.option_strings): str(action.help).partition("\n")[0] for action in shown}
        commands[name] = {"help": parser.description or name, "options": options}
    return {"lightning": version("lightning"), "commands": commands}


if __name__ == "__main__":
    OPTIONS.write_text(json.dumps(options_of_parsers(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
