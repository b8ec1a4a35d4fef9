"""Which code, packages and machine a run was started with, by the ``environment.yaml`` that it has written."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Origin:
    """Where a run comes from; of its last part, but for ``began``.

    Args:
        packages: versions by name, of all that were installed.
        commit: of the git repository that it was started in, and whether its files had been changed.
        python: version.
        devices: their number, kind and names.
        began: the first part.
        parts: how often it was started with something new: once, and once for each such resume.
        slurm_job: that it ran in.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    python: str | None = None
    devices: str | None = None
    began: datetime | None = None
    parts: int = 0
    slurm_job: str | None = None


def read_origin(folder: Path) -> Origin:
    """What is noted in the folder of a run; what cannot be read is as if it were not there."""
    parts = [_mapping(path) for path in (*folder.glob("environment.before_resume_*.yaml"), folder / "environment.yaml")]
    last = parts[-1]
    git, devices, packages = (
        value if isinstance(value := last.get(name), dict) else {} for name in ("git", "devices", "packages")
    )
    commit = git.get("commit")
    names = devices.get("names")
    return Origin(
        packages={str(name): version for name, version in packages.items() if isinstance(version, str)},
        commit=f"{commit}{', with changes' if git.get('dirty') else ''}" if commit else None,
        python=last.get("python"),
        devices=f"{devices.get('processes')} × {devices.get('type')} ({', '.join(map(str, names))})" if names else None,
        began=min(filter(None, map(_started, parts)), default=None),
        parts=sum(map(bool, parts)),
        slurm_job=_text(folder / "slurm_job").strip() or None,
    )


def _mapping(path: Path) -> dict[str, Any]:
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        content = yaml.load(_text(path), yaml.CSafeLoader)
        if isinstance(content, dict):
            return content
    return {}


def _started(part: Mapping[str, Any]) -> datetime | None:
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(part["started"]).astimezone()
    return None


def _text(path: Path) -> str:
    """Of a file, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
