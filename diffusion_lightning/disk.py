"""Text files that are whole whenever the process is killed, and what a warning says of a disk that is full."""

import shutil
from contextlib import suppress
from pathlib import Path


def replace_keeping(path: Path, text: str) -> None:
    """Write a text as a whole; a former one that differs stays as ``<name>.before_resume_<n><suffix>`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
        earlier = len(list(path.parent.glob(f"{path.stem}.before_resume_*{path.suffix}")))
        shutil.copy(path, path.with_name(f"{path.stem}.before_resume_{earlier}{path.suffix}"))
    replace(path, text)


def replace(path: Path, text: str) -> None:
    """Write a text in place of what was there, in one move; what was there stays if it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def free_space(folder: Path) -> str:
    """Such as ``"3.2 GiB free"``."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.3g} GiB free"
    except OSError:  # the folder is gone
        return "free space unknown"
