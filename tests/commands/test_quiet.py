"""What is left out at a start, and nothing else."""

import logging
import warnings

import pytest

from diffusion_lightning.commands.quiet import _is_wanted, silence_lightning


@pytest.mark.parametrize(
    ("message", "is_shown"),
    [
        (
            "The number of training batches (3) is smaller than the logging interval Trainer(log_every_n_steps=10).",
            False,
        ),
        ("`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec)` instead.", False),
        ("Checkpoint directory runs/a/checkpoints exists and is not empty.", False),
        ("The 'train_dataloader' does not have many workers which may be a bottleneck.", True),
        ("step 3: the loss or its gradient is not finite; the step is skipped", True),
    ],
)
def test_warnings(message, is_shown):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence_lightning()
        warnings.warn(message, stacklevel=1)
    assert bool(shown) is is_shown


@pytest.mark.parametrize(
    ("message", "is_shown"),
    [
        ("Tip: to do something else, install it", False),
        ("TPU available: False, using: 0 TPU cores", False),
        ("Restored all states from the checkpoint at runs/a/last.ckpt", False),
        ("GPU available: True (cuda), used: False", True),
        ("`Trainer.fit` stopped: `max_epochs=1` reached.", True),
    ],
)
def test_lines(message, is_shown):
    assert _is_wanted(logging.LogRecord("a", logging.INFO, "", 0, message, (), None)) is is_shown
