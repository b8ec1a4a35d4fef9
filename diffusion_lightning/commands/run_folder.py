"""A run's folder, by whatever name one has for it, and the checkpoint that is meant by it."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from diffusion_lightning.messages import inform
from diffusion_lightning.training.checkpoint_file import load_newest
from diffusion_lightning.training.foreign import recognised

CKPT_PATH = "A checkpoint, the folder of a run (its newest), or last: of the newest run below runs."
"""What every command's option of that name takes."""

RUNS = "runs"
"""The folder below which runs are, unless the trainer's ``default_root_dir`` says otherwise."""


def find_run(path: Path) -> Path:
    """The folder of the run that is meant by ``path``: itself, or its newest version.

    Raises:
        FileNotFoundError: if there is no run; the message says what is there instead.
    """
    if not path.is_dir():
        if path.exists():
            near = next((folder for folder in (path.parent, path.parent.parent) if _is_run(folder)), None)
            hint = f": give the folder of the run, {near}" if near else ": give the folder of a run"
            raise FileNotFoundError(f"is a file{hint}")
        raise FileNotFoundError("there is no such folder: give that of a run, such as runs/quickstart/version_0")
    if _is_run(path):
        return path
    if versions := numbered(path):
        return versions[0]
    named = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and any(folder.glob("version_*")))
    if named:
        raise FileNotFoundError(f"holds runs of the names {', '.join(named)}: give one of these folders")
    raise FileNotFoundError("is no run: give a run's folder, such as runs/quickstart/version_0 or runs/quickstart")


def numbered(folder: Path) -> list[Path]:
    """The versions of a named run, the newest first."""
    versions = [path for path in folder.glob("version_*") if path.name[8:].isdecimal() and path.is_dir()]
    return sorted(versions, key=lambda path: -int(path.name[8:]))


def find_checkpoint(given: str, root: str | Path = RUNS, option: str = "ckpt_path") -> str:
    """The file that is meant by a ``--ckpt_path``; where it is not the one given, a line says which.

    Args:
        given: a file, which is taken as it is; a run's folder, the folder of a run's versions, or that of its
            checkpoints, which means the newest that is intact; or ``last``: that of the newest run that has any.
        root: where the runs are that ``last`` is looked for among.
        option: that it was given as, for messages.

    Raises:
        FileNotFoundError: if no checkpoint is meant.
        ValueError: if none of those that are meant is intact.
    """
    path = Path(given)
    if given != "last" and not path.is_dir():
        return given
    if given != "last" and (foreign := recognised(path)):
        raise ValueError(f"{option}={given!r}: {foreign}")
    try:
        folder = _newest_run(Path(root)) / "checkpoints" if given == "last" else _checkpoints(path)
        found = load_newest(folder, map_location="meta")
    except OSError as error:
        raise FileNotFoundError(f"{option}={given!r}: {error}") from error
    if found is None:
        raise FileNotFoundError(f"{option}={given!r}: {folder} holds no checkpoint: give another run, or a file")
    inform(f"{'checkpoint' if option == 'ckpt_path' else option}: {found[0]}, step {found[1]['global_step']}")
    return str(found[0])


def run_of(ckpt_path: str | Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, written as its path is; None if it lies in none."""
    path = Path(ckpt_path)
    # a link elsewhere leads to its run; and what is too short to show the folder is written in full
    for place in (path if len(path.parts) > 2 and ".." not in path.parts else path.absolute(), path.resolve()):
        folder = place.parent.parent
        if (folder / "config.yaml").is_file():
            return folder.resolve() if ".." in folder.parts else folder
    return None


def recorded_name(folder: Path) -> str | None:
    """The name of a run as its ``config.yaml`` has it, wherever the folder is now; None where that cannot be read."""
    try:
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    name: Any = config.get("run_name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _checkpoints(path: Path) -> Path:
    """The folder of checkpoints that is meant by a folder: of several versions the newest one's that has any."""
    if any(path.glob("*.ckpt")) and not (path / "checkpoints").is_dir():
        return path
    run = find_run(path)
    versions = [run] if run == path else numbered(path)
    return next((folder for folder in versions if any(folder.glob("checkpoints/*.ckpt"))), run) / "checkpoints"


def _newest_run(root: Path) -> Path:
    """The run below ``root`` whose newest checkpoint is the newest of all."""
    written: dict[Path, int] = {}
    for path in root.rglob("checkpoints/*.ckpt"):
        written[path.parent.parent] = max(written.get(path.parent.parent, 0), os.stat(path).st_mtime_ns)
    if not written:
        raise FileNotFoundError(f"no run in {root} has a checkpoint: give a file, or the folder of a run")
    return max(written, key=lambda folder: written[folder])


def _is_run(folder: Path) -> bool:
    """Whether it has anything of what a run leaves, or the name of a run that has left nothing yet."""
    if re.fullmatch(r"version_\d+", folder.resolve().name):
        return True
    return any(any(folder.glob(name)) for name in ("config.yaml", "metrics.csv", "checkpoints", "*/epoch=*.png"))
