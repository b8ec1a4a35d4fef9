"""What Lightning and PyTorch say at the start of a run that nobody who runs it can do anything about."""

import logging
import re
import warnings

WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of PyTorch
    r"The number of training batches \(\d+\) is smaller than the logging interval",  # an epoch's mean is logged anyhow
    r"Checkpoint directory .* exists and is not empty",  # of a run that is gone on with it is so
    # of all processes they are already
    r"It is recommended to use `self\.log\('(train/loss_epoch|[fk]id|agreement|legible).*', \.\.\., sync_dist=True\)",
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",  # Lightning's use of PyTorch
    r"LightningCLI's args parameter is intended to run from within Python",
)
"""How they begin."""

LINES = (
    r"Tip:",
    r"Loading `train_dataloader` to estimate number of stepping batches",
    r"TPU available: False",
    r"Trainer already configured with model summary callbacks",
    r"Restor(ing|ed all) states from the checkpoint",  # what is gone on with has been told
)
"""How lines of Lightning's log do."""

_LOGGER = "lightning.pytorch.utilities.rank_zero"


def silence_lightning() -> None:
    """Leave these out from now on, in this process."""
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", beginning)
    log = logging.getLogger(_LOGGER)
    if _is_wanted not in log.filters:
        log.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(re.search(beginning, message) for beginning in LINES)
