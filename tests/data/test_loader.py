import gc
import os
import signal
import subprocess
import sys

import pytest
from numbered import Numbered, order

from diffusion_lightning import EmbeddedMNIST
from diffusion_lightning.data import loader
from diffusion_lightning.data.loader import BatchLoader


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_nothing_before_its_first_batch(workers):
    data = Numbered(batch_size=8)
    batches = order(50, 8)
    iterator = iter(BatchLoader(data.train_images, batch_size=None, sampler=batches, num_workers=workers))
    batches.set_epoch(1)
    assert next(iterator)[1].tolist() == next(iter(order(50, 8, epoch=1)))


def test_workers_leave_signals_to_the_training_process():
    batches = BatchLoader(Numbered().train_images, batch_size=None, sampler=order(50, 1), num_workers=1)
    iterator = iter(batches)
    next(iterator)
    (worker, _) = loader._workers[-1]
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, signum)
    assert len(list(iterator)) == 49


def test_workers_end_with_a_process_that_an_error_ended():
    """They leave SIGTERM to the training process; a loader that a traceback still holds must not keep it waiting."""
    code = (
        "import builtins\n"
        "from diffusion_lightning import EmbeddedMNIST\n"
        "builtins.kept = iter(EmbeddedMNIST(num_workers=1).train_dataloader())\n"
        "next(builtins.kept)\n"
        "raise SystemExit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 3


def test_workers_end_with_a_loader_that_is_garbage():
    """As one is that an exception's traceback held."""
    iterator = iter(EmbeddedMNIST(num_workers=1).train_dataloader())
    next(iterator)
    (worker, _) = loader._workers[-1]
    assert worker.is_alive()
    cycle = [iterator]
    cycle.append(cycle)
    del iterator, cycle
    gc.collect()
    assert not worker.is_alive()
