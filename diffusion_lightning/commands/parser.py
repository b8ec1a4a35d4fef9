"""The parser of every command: typed by annotations, strict with what is misspelt, and of one line where it refuses."""

import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from diffusion_lightning.commands.class_options import ClassOptions
from diffusion_lightning.commands.configs import find as find_config
from diffusion_lightning.commands.list_options import is_list, with_lists
from diffusion_lightning.commands.manual import EXAMPLES
from diffusion_lightning.commands.usage import UsageError, explain
from diffusion_lightning.messages import is_first_process

# a config is data: what it names may be built where its type is asked for, and nothing that runs commands ever
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)

DEEPEST = 50
"""More levels than any config has; from some hundreds on they would take minutes, or all of Python's stack."""


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, whose errors are a :class:`UsageError` of one line with a suggestion."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # an abbreviation would let a misspelt option pass as another one
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse's, after looking whether each config file is one, and refusing null where it means nothing.

        Classes are read as :class:`~diffusion_lightning.commands.class_options.ClassOptions` says, its notes on stderr.

        Raises:
            UsageError: if the options cannot be used.
        """
        args, taken = _with_shipped(self._with_lists(sys.argv[1:] if args is None else list(args)))
        _tell(taken)
        for path in _config_files(args):
            _check_config_file(path)
        classes = ClassOptions()
        try:
            with classes.watched():
                options = super().parse_args(args, *more, **kwargs)
        except RecursionError as error:
            raise UsageError("the options are nested too deeply") from error
        except SystemExit:  # --print_config
            _tell(classes.notes())
            raise
        _tell(classes.notes())
        command = options.get("subcommand")
        self._refuse_null(options[command] if command else options, [])
        return options

    def _with_lists(self, args: list[str]) -> list[str]:
        subcommands = self._subcommands_action
        parser = self if subcommands is None else subcommands.choices.get(args[0]) if args else None
        if parser is None or any(not action.option_strings for action in parser._actions if action is not subcommands):
            return args  # where words may stand by themselves, none can be told to belong to an option
        actions = parser._option_string_actions
        lists = [option for option in actions if is_list(getattr(actions[option], "_typehint", None))]
        alone = args[0 if subcommands is None else 1 :][:1]
        if alone and not alone[0].startswith("-"):
            option = "--config" if "--config" in actions else "--ckpt_path"
            raise UsageError(f"{alone[0]!r} has no option before it: give {option} {shlex.quote(alone[0])}")
        try:
            return list(with_lists(args, lists))
        except ValueError as error:
            raise UsageError(str(error)) from error

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """As jsonargparse's, which has no word for a default that is an enumeration's string: it is the string."""
        cfg = cfg.clone()
        for name, value in cfg.items():
            if isinstance(value, str) and isinstance(value, Enum):
                cfg[name] = value.value
        return super().dump(cfg, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if missing := re.search(r"the following arguments are required: (.*)", message):
            names = missing[1].split(", ")
            command = names[0].partition(".")[0] if self._subcommands_action else self.prog.rpartition(" ")[2]
            words = [name.removeprefix(f"{command}.") for name in names]
            told = ", ".join(f"--{word}" if f"--{word}" in self._options(command) else word for word in words)
            raise UsageError(f"missing: {told}; for instance: {EXAMPLES.get(command, command)}") from ex
        options = [option for option in self._option_string_actions if option.startswith("--")]
        raise UsageError(explain(message, options)) from ex

    def _options(self, command: str) -> dict[str, Any]:
        subcommands = self._subcommands_action
        parser = self if subcommands is None else subcommands.choices[command]
        return parser._option_string_actions

    def class_of(self, path: list[str]) -> type | None:
        """The class whose arguments an option holds that names none itself; None if there is no such option."""
        return None

    def _refuse_null(self, options: Any, path: list[str]) -> None:
        """Raise a UsageError naming the first null for an argument that has another default and no such type."""
        if isinstance(options, list):
            for item in options:
                self._refuse_null(item, path)
        if not isinstance(options, Namespace):
            return
        arguments = vars(options)
        if "class_path" in arguments:
            needed = never_none(pkgutil.resolve_name(options.class_path))
            arguments = vars(arguments.get("init_args") or Namespace())
        else:
            needed = never_none(self.class_of(path))
        for name, value in arguments.items():
            if value is None and name in needed:
                raise UsageError(f"option {'.'.join([*path, name])}: must not be null: leave it out for its default")
            self._refuse_null(value, [*path, name])


def _tell(notes: list[str]) -> None:
    for note in notes if is_first_process() else []:
        print(f"lightning: {note}", file=sys.stderr)


def _config_files(args: list[str]) -> Iterator[str]:
    """The files that ``--config`` names on a command line."""
    for option, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = option.partition("=")
        if name in ("--config", "-c"):
            yield value if equals else following


def _with_shipped(args: list[str]) -> tuple[list[str], list[str]]:
    """A command line with the package's configs by their paths, where ``--config`` names no file; and notes of it."""
    found, notes = list(args), list[str]()
    for place, option in enumerate(args):
        name, equals, value = option.partition("=")
        if name not in ("--config", "-c"):
            continue
        value = value if equals else "".join(args[place + 1 : place + 2])
        config = None if _is_file(value) else find_config(value)
        if config is not None:
            found[place if equals else place + 1] = f"{name}={config}" if equals else str(config)
            notes.append(f"{value} is the package's, {config}, since there is none here")
    return found, notes


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # such as a whole config in place of a name, which is longer than a name can be
        return False


def _check_config_file(path: str) -> None:
    """Raise a UsageError that names the file if it holds anything but a mapping in YAML; one not there passes."""
    try:
        if not _is_file(path):
            return
        content = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.CSafeLoader)
    except OSError:
        return
    except RecursionError as error:
        raise UsageError(f"config={path!r}: is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"config={path!r}: is not a text in UTF-8") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"config={path!r}: Problems parsing config: {reason}") from error
    level = {id(content): content} if isinstance(content, dict | list) else {}
    for _ in range(DEEPEST):
        inner = (item.values() if isinstance(item, dict) else item for item in level.values())
        level = {id(item): item for items in inner for item in items if isinstance(item, dict | list)}
    if level:
        raise UsageError(f"config={path!r}: is nested too deeply")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"config={path!r}: must hold options by name, such as trainer, model and data")
    for name in ("trainer", "model"):
        if not isinstance(content.get(name), dict | str | None):  # a text is the name of a file of options
            raise UsageError(f"config={path!r}: {name}={content[name]}: must hold options by name")


def never_none(cls: Any) -> set[str]:
    """The names of a class's arguments whose types have no None; of an argument that its parents have too, its own."""
    names, known = set[str](), set[str]()
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        if "__init__" in vars(base) and base is not object:
            try:
                hints = get_type_hints(base.__init__)  # type: ignore[misc]
            except (NameError, TypeError):  # of types that only a type checker knows
                continue
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            names |= {
                name
                for name, hint in hints.items()
                if name in parameters.keys() - known
                and parameters[name].default is not None
                and parameters[name].default is not inspect.Parameter.empty  # told of as missing, by another check
                and hint not in (Any, object)
                and not {None, type(None)} & set(get_args(hint))
            }
            known |= parameters.keys()
    return names
