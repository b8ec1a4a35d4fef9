"""What a warning about a file that cannot be written says of the disk."""

import shutil
from pathlib import Path


def free_space(folder: Path) -> str:
    """Such as ``"3.2 GiB free"``."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.3g} GiB free"
    except OSError:  # the folder is gone
        return "free space unknown"
