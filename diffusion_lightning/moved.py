"""Where modules went: a name that an old checkpoint, a config or somebody's import may hold still finds its module."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __package__

MOVED = {
    "augmentation": "data.augmentation",
    **{
        name: f"training.{name}"
        for name in (
            "callback_states",
            "checkpoint",
            "compatibility",
            "compilation",
            "ema",
            "foreign",
            "module",
            "non_finite",
            "position",
            "precision",
            "recipe",
            "resume",
            "schedule",
            "sharding",
            "unsupported",
            "watchers",
        )
    },
    **{name: f"loggers.{name}" for name in ("environment", "guest")},
    **{
        name: f"commands.{name}"
        for name in (
            "class_options",
            "cli",
            "dry_run",
            "evaluation_report",
            "list_options",
            "manual",
            "real_images",
            "run_folder",
            "usage",
        )
    },
    **{f"{name}_command": f"commands.{name}" for name in ("evaluate", "export", "likelihood", "report", "sample")},
}
"""Modules of the package by their names up to 0.2.0, and their names now."""


class _Moved(MetaPathFinder, Loader):
    """Imports the module of the new name where the old one is asked for: one module, under two names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        sys.modules[module.__name__] = import_module(f"{PACKAGE}.{MOVED[name]}")


def resolve_moved() -> None:
    """Let the old names be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
