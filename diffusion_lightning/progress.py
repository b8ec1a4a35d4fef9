"""One progress bar for all long work: rate and time left, nested below the training bar, quiet in log files."""

import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(**settings: Any) -> tqdm:
    """A `tqdm` bar that cleans up after itself; when the output is not a terminal it prints a line every 30 s at most.

    Args:
        settings: `tqdm`'s own (``total``, ``desc``, ``unit``, ``disable``, …).
    """
    settings.setdefault("mininterval", 0.1 if sys.stderr.isatty() else 30.0)
    return tqdm(leave=False, dynamic_ncols=True, **settings)
