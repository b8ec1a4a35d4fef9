"""Rank-zero messages: told once and not by every process, with Lightning or without it."""

import logging
import sys
import warnings

_logger = logging.getLogger("diffusion_lightning")
_logger.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # nobody else has said where messages go
    _logger.addHandler(logging.StreamHandler())
    _logger.propagate = False

# how gloo and NCCL say that another process has gone, or has not answered within the strategy's timeout; neither has a
# type of its own for it
LOST_CONTACT = ("gloo/transport/", "Application timeout caused pair closure", "Timed out waiting", "ncclRemoteError")

# how a processor's allocator, and devices', say that there is no memory left; torch's own type is of devices alone
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory is left, here or on a device."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says that another process of the run has gone, or has not answered in time."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_CONTACT)


def warn(message: str) -> None:
    """Warn, in the first process alone; the line named is the caller's caller's."""
    if is_first_process():
        warnings.warn(message, stacklevel=3)


def inform(message: str) -> None:
    """Tell on standard error, in the first process alone, by the logger ``diffusion_lightning``."""
    if is_first_process():
        _logger.info(message)


def is_first_process() -> bool:
    """Whether this process is the first of those that Lightning has started, or the only one."""
    lightnings = sys.modules.get(
        "lightning_utilities.core.rank_zero"
    )  # where it is not loaded, nothing has started any
    return lightnings is None or getattr(lightnings.rank_zero_only, "rank", 0) in (0, None)
