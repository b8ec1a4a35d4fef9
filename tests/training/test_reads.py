"""Between steps the host reads no value, which on a GPU it would wait for. On the CPU every read is one of the host."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lightning import SDE, RunReport, TrainingProgressBar


class Read(Exception):
    pass


class NobodyReads(TorchDispatchMode):
    """Inside, whoever reads a value of a tensor raises."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise Read
        return func(*args, **(kwargs or {}))


def test_a_read_raises():
    with NobodyReads():
        number = torch.ones(()) + 1
        with pytest.raises(Read):
            number.item()
        with pytest.raises(Read):
            bool(number > 0)


@pytest.mark.parametrize("callbacks", [(), (TrainingProgressBar, RunReport)], ids=["bare", "bar and report"])
def test_ordinary_steps_read_nothing(callbacks, make_module, make_trainer, make_data, monkeypatch):
    monkeypatch.setattr(SDE, "check_times", lambda *_: None)  # which looks at times that are on a CPU alone
    steps: list[int] = []
    mode = NobodyReads()

    def begin(trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == 2:
            mode.__enter__()

    def end(trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        steps.append(index)
        if index == 8:
            mode.__exit__(None, None, None)

    def leave(trainer: Any, module: Any, exception: BaseException) -> None:
        if 2 <= len(steps) < 9:
            mode.__exit__(None, None, None)

    watch = LambdaCallback(on_train_batch_start=begin, on_train_batch_end=end, on_exception=leave)
    trainer = make_trainer(
        limit_train_batches=10, limit_val_batches=0, log_every_n_steps=1000, enable_progress_bar=bool(callbacks),
        callbacks=[*(make() for make in callbacks), watch],
    )  # fmt: skip
    # who decides on a step by itself: fused, as a GPU's are
    module = make_module(optimizer=partial(torch.optim.AdamW, lr=1e-4, fused=True))
    trainer.fit(module, datamodule=make_data())
    assert steps == list(range(10))
