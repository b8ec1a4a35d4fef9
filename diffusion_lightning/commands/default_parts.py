"""What a run has without being asked: checkpoints, a bar, a graceful end, a report; unless its config has its own."""

import sys
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.plugins.io import CheckpointIO

from diffusion_lightning.callbacks import (
    BestCheckpoint,
    GracefulStop,
    LastCheckpoint,
    RunReport,
    SampleWriter,
    TerminalProgressBar,
    TrainingProgressBar,
)
from diffusion_lightning.callbacks.network_summary import NetworkSummary
from diffusion_lightning.training.checkpoint import WholeCheckpointIO


def add_progress_bar(callbacks: list[Any]) -> None:
    """Add a bar, on a terminal or for a log file."""
    if not _has(callbacks, ProgressBar):
        callbacks.append(TerminalProgressBar() if sys.stderr.isatty() else TrainingProgressBar())


def add_sample_writer(callbacks: list[Any]) -> None:
    """Add what writes the pictures of a prediction."""
    if not _has(callbacks, SampleWriter):
        callbacks.append(SampleWriter())


def add_checkpoints(callbacks: list[Any]) -> None:
    """Add the best checkpoint, where no callback saves but for the last, and the last one, where none saves that."""
    saving = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if all(isinstance(callback, LastCheckpoint) for callback in saving):
        callbacks.append(BestCheckpoint())
    if not any(isinstance(callback, LastCheckpoint) or callback.save_last for callback in saving):
        callbacks.append(LastCheckpoint())


def add_summary(callbacks: list[Any]) -> None:
    """Add what says which network is trained."""
    if not _has(callbacks, ModelSummary):
        callbacks.append(NetworkSummary())


def add_stop_and_report(callbacks: list[Any]) -> None:
    """Add what ends a training gracefully, and what says how it went."""
    if not _has(callbacks, GracefulStop):
        callbacks.insert(0, GracefulStop())  # before those that may take long at the start
    if not _has(callbacks, RunReport):
        callbacks.append(RunReport())


def add_checkpoint_io(plugins: list[Any]) -> None:
    """Add what writes checkpoints whole or not at all."""
    if not _has(plugins, CheckpointIO):
        plugins.append(WholeCheckpointIO())


def as_list(given: Any) -> list[Any]:
    """What may be given as a list, as one alone, or not at all."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def _has(parts: list[Any], kind: type) -> bool:
    return any(isinstance(part, kind) for part in parts)
