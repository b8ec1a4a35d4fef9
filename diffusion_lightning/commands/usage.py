"""Mistakes of the user as one line: which option, which value, and what would be right."""

import difflib
import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

import diffusion_lightning
from diffusion_lightning.commands.class_options import ClassOptions
from diffusion_lightning.commands.configs import find as find_config
from diffusion_lightning.commands.list_options import is_list, with_lists
from diffusion_lightning.commands.manual import EXAMPLES
from diffusion_lightning.training.compilation import Compile
from diffusion_lightning.training.module import ScoreModule

# a config is data: what it names may be built where its type is asked for, and nothing that runs commands ever
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)

LARGEST_SEED = 2**32 - 1
DEEPEST = 50
"""More levels than any config has; from some hundreds on they would take minutes, or all of Python's stack."""

CKPT_PATH = "A checkpoint, the folder of a run (its newest), or last: of the newest run below runs."
"""What every command's option of that name takes."""

TRAINER_LEAST: dict[str, float] = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": -1,
    "num_sanity_val_steps": -1,
}
"""The least that each of these options of the trainer can be; Lightning checks the others, and not these."""


class UsageError(ValueError):
    """The command cannot do what it was told to; the message is fit to be shown as it is."""


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are a :class:`UsageError` of one line with a suggestion."""

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
        _refuse_null(options[command] if command else options, [])
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


def add_drawing_options(parser: OneLineParser) -> None:
    """Add what every command takes that draws samples from a checkpoint: on what, how, and what is told of it."""
    parser.add_argument("--batch_size", type=int, default=256, help="How many are drawn at once.")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, …; the first GPU if any.")
    parser.add_argument(
        "--precision",
        type=Literal["auto", "32-true"],
        default="auto",
        help="Of the network: auto is bf16 where the device has units for it, else float32.",
    )
    parser.add_argument(
        "--compile", type=Compile, default=False, help="The network first, for minutes: worth it for many samples."
    )
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")


def load_on_device(ckpt_path: str, device: str | None, compile: Compile = False) -> ScoreModule:
    """A checkpoint's module on the device of a ``--device`` option: by default the first GPU, if there is any.

    Raises:
        UsageError: if there is no such device.
        ValueError, OSError: if the checkpoint cannot be used.
    """
    module = ScoreModule.load_from_checkpoint(ckpt_path, compile=compile)
    wanted = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.Generator(wanted)  # some devices hold tensors and draw none
        return module.to(torch.device(wanted))
    except (RuntimeError, AssertionError) as error:  # of the latter type if torch was built without it
        raise UsageError(f"device={wanted!r}: cannot be used here: {str(error).splitlines()[0]}") from error


def check_seed(**options: int | None) -> None:
    """Raise a UsageError naming the first option that is no seed."""
    for name, seed in options.items():
        if seed is None or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"{name}={seed}: must be from 0 to {LARGEST_SEED}")


def check_run(config: Namespace) -> None:
    """Look at the options of a run that neither their types nor Lightning keep within their ranges.

    Args:
        config: a parsed subcommand's options.

    Raises:
        UsageError: naming the first option that cannot be used.
    """
    check_seed(seed_everything=config.seed_everything)
    if config.run_name is not None:
        name = Path(config.run_name)
        if not name.parts or name.is_absolute() or ".." in name.parts or not config.run_name.isprintable():
            raise UsageError(f"run_name={config.run_name!r}: must be a name of a folder below trainer.default_root_dir")
    for option, least in TRAINER_LEAST.items():
        value = config.trainer[option]
        if value is not None and not value >= least:
            raise UsageError(f"trainer.{option}={value}: must be at least {least}")
    time = config.trainer.max_time
    if isinstance(time, str) and not any(digit in time for digit in "123456789"):
        raise UsageError(f"trainer.max_time={time!r}: must be some time, as DD:HH:MM:SS, or null for no limit")
    if config.trainer.barebones:
        raise UsageError("trainer.barebones=True: has no logger, but every run of this command has one: leave it out")
    for option in ("optimizer", "lr_scheduler"):
        made_by = config.model[option]
        # jsonargparse would call a function that is named here, with whatever arguments the config gives it
        path = made_by.class_path if isinstance(made_by, Namespace) else made_by and made_by.__qualname__
        if made_by is not None and (callable(made_by) or not inspect.isclass(pkgutil.resolve_name(path))):
            raise UsageError(f"model.{option}: {path} is a function: give a class")


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
        # where a class was meant, no other kind of value was
        kept = [r for r in kept if r.startswith("Problem with given class_path")] or kept
        text = text[: union.start()] + " or ".join(dict.fromkeys(kept)) + got
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: (- |or )?", "", text)
    a_list = r"Expected an? (?:list|tuple|collections\.abc\.\w+)\. Got value: ([^\s\[{]+)"
    text = re.sub(a_list, r"Expected a list, such as '[\1]'. Got value: \1", text)
    # what every class and function could be given as is in the manual
    text = re.sub(r" Subclass types expect one of: .*?\(implicit class_path\)", "", text)
    text = re.sub(r"Type typing\.Callable\[.*?\] expects a function or a callable class: ", "", text)
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


@rank_zero_only
def _tell(notes: list[str]) -> None:
    for note in notes:
        print(f"lightning: {note}", file=sys.stderr)


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, [name for name in known if name != word], n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _all_arguments() -> list[str]:
    """The names of all constructor arguments of the package."""
    classes = [getattr(diffusion_lightning, name) for name in diffusion_lightning.__all__]
    return sorted({argument for cls in classes for argument in inspect.signature(cls).parameters})


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


def _refuse_null(options: Any, path: list[str]) -> None:
    """Raise a UsageError naming the first null in place of an argument that has another default and no such type."""
    if isinstance(options, list):
        for item in options:
            _refuse_null(item, path)
    if not isinstance(options, Namespace):
        return
    arguments, needed = vars(options), set[str]()
    if "class_path" in arguments:
        needed = _never_none(pkgutil.resolve_name(options.class_path))
        arguments = vars(arguments.get("init_args") or Namespace())
    elif path == ["model"]:
        needed = _never_none(ScoreModule)
    elif path == ["trainer"]:
        needed = _never_none(Trainer)
    for name, value in arguments.items():
        if value is None and name in needed:
            raise UsageError(f"option {'.'.join([*path, name])}: must not be null: leave it out for its default")
        _refuse_null(value, [*path, name])


def _never_none(cls: Any) -> set[str]:
    """The names of a class's arguments, those of its parents included, whose types have no None."""
    names: set[str] = set()
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
                if name in parameters
                and parameters[name].default is not None
                and parameters[name].default is not inspect.Parameter.empty  # told of as missing, by another check
                and hint not in (Any, object)
                and not {None, type(None)} & set(get_args(hint))
            }
    return names
