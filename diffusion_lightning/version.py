"""The version of this package, written here and nowhere else, and those of others.

A source tree that is on the path but not installed has no metadata, so it is not asked for its own version there;
``pyproject.toml`` reads it from here.
"""

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.2.0"


def installed_version(package: str) -> str | None:
    """The version of a package by its metadata; None if it has none, or is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
