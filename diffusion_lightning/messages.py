"""Rank-zero messages: told once and not by every process, with Lightning or without it."""

import warnings

from lightning_utilities.core.rank_zero import rank_zero_only


def warn(message: str) -> None:
    """Warn, in the first process alone; the line named is the caller's caller's."""
    if getattr(rank_zero_only, "rank", 0) == 0:  # Lightning sets it, where there are several
        warnings.warn(message, stacklevel=3)
