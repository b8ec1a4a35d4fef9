"""One progress bar for all long work: rate and time left, by rich on a terminal, a line now and then in log files."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from tqdm.auto import tqdm


def progress_bar(**settings: Any) -> tqdm:
    """A bar that cleans up after itself; when standard error is not a terminal it prints a line every 30 s at most.

    Args:
        settings: `tqdm`'s own (``total``, ``desc``, ``unit``, ``disable``, …).
    """
    if not sys.stderr.isatty():
        settings.setdefault("mininterval", 30.0)
        # in the line of any other bar: to move up to it would be an escape code in the file
        return tqdm(leave=False, dynamic_ncols=True, position=0, **settings)
    from rich import get_console  # here, where there is something to draw
    from tqdm import TqdmExperimentalWarning
    from tqdm.rich import tqdm_rich

    use_standard_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmExperimentalWarning)
        # on rich's one console, where it stands below the training bar
        return tqdm_rich(leave=False, options={"console": get_console()}, **settings)


def watched(batches: Iterable[Sized], **settings: Any) -> Iterator[Any]:
    """The batches, with a :func:`progress_bar` of their examples from the first one on: none at all shows none."""
    with progress_bar(**settings) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def use_standard_error() -> None:
    """Let rich's console, on which all bars are drawn, be standard error: what a command prints may go to a file."""
    from rich import get_console, reconfigure

    if not get_console().stderr:
        reconfigure(stderr=True)
