"""Provenance: what a run is started in, the command, the code's version, the packages, the machine."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from diffusion_lightning.version import __version__

PATIENCE = 5.0
"""Seconds for git to answer: a working directory on a slow network must not hold a run up."""


def describe_environment(command: Sequence[str], device: torch.device, processes: int) -> dict[str, Any]:
    """Plain values by name, fit for YAML: what one would have to restore to start this run again.

    - ``started``: the time, in UTC; ``command``, as a shell takes it; ``directory``: where it was given;
    - ``git``: of that directory, see :func:`code_version`;
    - ``diffusion_lightning`` and ``python``: their versions; ``platform``: the operating system;
    - ``devices``: their ``type`` and ``names``, those of this machine, ``cpus`` of it, and ``processes`` of the run;
    - ``packages``: the version of everything that is installed, and of this package if it is not.

    Args:
        command: the command line, program first.
        device: of this process.
        processes: of the run, on all machines.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "directory": os.getcwd(),
        "git": code_version(Path.cwd()),
        "diffusion_lightning": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "type": device.type,
            "names": _device_names(device),
            "cpus": os.cpu_count(),
            "processes": processes,
        },
        "packages": _packages(),
    }


def code_version(folder: Path) -> dict[str, Any] | None:
    """The git ``commit`` of a folder, and whether it is ``dirty``; None outside of a repository, or without git.

    Dirty means that a file which git tracks differs from the commit. New files do not count: a run makes some itself.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None if it fails, or is not there."""
    # without its locks: another git command of the user's must not fail because a run starts
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _device_names(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [platform.processor() or platform.machine()]


def _packages() -> dict[str, str]:
    all_headers = [package.metadata for package in distributions()]  # read and parsed anew at every access
    found = {str(headers["Name"]): str(headers["Version"]) for headers in all_headers if headers["Name"]}
    found["diffusion-lightning"] = __version__
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
