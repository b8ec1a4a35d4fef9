"""A home and a name for who has none: a container's user id that its system does not know, a batch job without HOME."""

import getpass
import os
import stat
import sys
import tempfile
from pathlib import Path


def has_home() -> bool:
    """Whether there is a directory that is the user's; the root, which everybody has, only where it can be written."""
    home = Path(os.path.expanduser("~"))
    return home.is_absolute() and home.is_dir() and (home != Path(home.anchor) or os.access(home, os.W_OK))


def default_cache() -> Path:
    """Where the package keeps what took long: ``$XDG_CACHE_HOME/diffusion_lightning``, by default in ``~/.cache``.

    Without a home it is among the temporary folders.
    """
    home = os.path.expanduser("~") if has_home() else tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "diffusion_lightning"


def give_home() -> None:
    """Set ``HOME`` to a folder among the temporary ones where there is no home, and say so; ``LOGNAME`` likewise.

    Otherwise each library that keeps something for the user ends in its own way: PyTorch's hub and compiler, W&B, and
    :func:`default_cache`.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # of the first type before Python 3.13
        os.environ["LOGNAME"] = f"user{_user()}"
    if not has_home():
        folder = _own_folder()
        os.environ["HOME"] = str(folder)
        print(f"lightning: there is no home directory (HOME): caches are kept in {folder}", file=sys.stderr)


def _own_folder() -> Path:
    """The same each time, unless somebody else has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"diffusion_lightning-{_user()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == _user():
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="diffusion_lightning-"))


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
