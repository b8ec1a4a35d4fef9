"""The configs that come with the package: finding one by its name, ``lightning configs`` that lists and copies them."""

import argparse
import re
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).parent.parent

LONGEST = 110
"""Characters of what is said of a config."""


def folder() -> Path:
    """Where they lie: in the package that was installed, or beside it in a clone of the repository."""
    shipped = PACKAGE / "configs"
    return shipped if shipped.is_dir() else PACKAGE.parent / "configs"


def find(name: str) -> Path | None:
    """The config of the package that a name means, with or without its leading ``configs/``; None if it means none."""
    if name not in (known := names()):
        name = name.removeprefix("configs/")
    return folder() / name if name in known else None


def names() -> list[str]:
    """All of them: the experiments, then what lies in folders (``overlays/debug.yaml``)."""
    found = (path.relative_to(folder()) for path in folder().rglob("*.yaml"))
    return [path.as_posix() for path in sorted(found, key=lambda path: (len(path.parts), path.parts))]


def summary(config: Path) -> str:
    """The first sentence of a config's first comment, in one line."""
    lines = config.read_text(encoding="utf-8").splitlines()
    comment = [line[1:] for line in lines[: next((i for i, line in enumerate(lines) if line[:1] != "#"), None)]]
    # examples of commands are indented
    sentence = re.split(r"\.(?=\s+[A-Z])|;|   +", "\n".join(comment).strip(), maxsplit=1)[0]
    words = " ".join(sentence.split()).rstrip(".")
    return words if len(words) <= LONGEST else words[: words.rindex(" ", 0, LONGEST)] + " …"


def configs_command(args: list[str]) -> None:
    """List the package's configs, or copy one into the working directory.

    Args:
        args: the command line after ``lightning configs``.

    Raises:
        ValueError: if there is no config of this name.
        OSError: if a file of its name is here already, or cannot be written.
    """
    name = configs_parser().parse_args(args).name
    if name is None:
        width = max(map(len, names()), default=0)
        for each in names():
            print(f"{each:{width}}  {summary(folder() / each)}")
        print("\nTo train by one:         lightning fit --config quickstart.yaml")
        print("To copy one, and edit:   lightning configs quickstart.yaml")
        return
    config = find(name)
    if config is None:
        raise ValueError(f"{name!r} is no config of the package: must be one of {', '.join(names())}")
    copy = Path(config.name)
    try:
        with copy.open("x", encoding="utf-8") as file:
            file.write(config.read_text(encoding="utf-8"))
    except FileExistsError:
        raise FileExistsError(f"{copy} is here already and is kept: move it away, or copy in another folder") from None
    print(f"{copy} is here now, to be edited; a file here goes before the package's of the same name")


class _Parser(argparse.ArgumentParser):
    """Its errors are a line, as those of the other commands; they have a parser that takes seconds to load."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def configs_parser() -> argparse.ArgumentParser:
    """The options of ``lightning configs``."""
    parser = _Parser(
        prog="lightning configs",
        description="List the configs that come with the package, or copy one here to edit it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", nargs="?", default=None, help="Of the config that is copied here, such as quickstart.yaml; none lists."
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser
