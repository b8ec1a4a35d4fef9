"""What a run meets at a chosen moment, and what it leaves behind; the command finds these through PYTHONPATH.

A moment is the name of a hook, or of a function of ``FUNCTIONS``, and a number n: when it is called for the n-th time.
"""

import hashlib
import json
import os
import resource
import signal
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partialmethod
from io import BytesIO
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lightning import SDE, EmbeddedMNIST, ScoreModule, UNet
from diffusion_lightning.training.ema import EMA

FUNCTIONS = {"sample": (ScoreModule, "sample"), "ema": (EMA, "update"), "write": (torch, "save")}
"""More moments: samples are drawn; the optimizer has stepped and the EMA has not; a checkpoint is written."""

IS_FIRST = os.environ.get("LOCAL_RANK", "0") == "0"


class Misfortunes(Callback):
    """Does what the environment variable MISFORTUNES lists, in the run's first process: ``<what> <where> <n>; …``.

    ``SIGTERM sample 2`` sends this process that signal at that moment, ``group:SIGTERM sample 2`` all processes of the
    run, and ``sleep sample 2`` waits for ten minutes. ``half write 2`` kills this process when half of that checkpoint
    is written, and at ``full write 2`` there is no room for more than a part of it.
    """

    def __init__(self) -> None:
        for misfortune in filter(None, os.environ.get("MISFORTUNES", "").split("; ") if IS_FIRST else []):
            what, where, number = misfortune.split()
            owner, name = FUNCTIONS.get(where, (self, where))
            setattr(owner, name, at_call(int(number), what, getattr(owner, name)))


def at_call(number: int, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, at whose n-th call it happens."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if what in WRITES and isinstance(args[1], BytesIO):
            return function(*args, **kwargs)
        calls += 1
        if calls != number:
            return function(*args, **kwargs)
        if what in WRITES:
            return WRITES[what](function, *args)
        if what == "sleep":
            time.sleep(600)
        elif what.startswith("group:"):
            os.killpg(os.getpgrp(), signal.Signals[what.removeprefix("group:")])
        else:
            os.kill(os.getpid(), signal.Signals[what])
        return function(*args, **kwargs)

    return counted


def write_half(save: Callable[..., None], content: Any, file: Any) -> None:
    """Die in the middle of it."""
    whole = BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def write_to_full_disk(save: Callable[..., None], content: Any, file: Any) -> None:
    """Fail as on a full disk, where the first bytes still find room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # Python ignores SIGXFSZ: the write fails
    try:
        save(content, file)
        file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITES = {"half": write_half, "full": write_to_full_disk}


class Record(Callback):
    """Each process appends a line for every batch to ``record.rank….jsonl``, and leaves its final weights and those of
    the EMA in ``final.rank….pt``."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        assert isinstance(pl_module, ScoreModule)
        line = {
            "steps": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": trainer.fit_loop.batch_idx,
            "loss": outputs["loss"].item(),
            "gradient_norm": float(pl_module.gradient_norm) if pl_module.gradient_norm is not None else None,
            "skipped_steps": pl_module.skipped_steps,
            "weights": digest(pl_module.network.parameters()),
            "ema": [pl_module.ema.num_updates, digest(pl_module.ema.shadow_params)],
            "optimizer": digest(
                v for state in trainer.optimizers[0].state.values() for v in state.values() if isinstance(v, Tensor)
            ),
        }
        with open(f"record.rank{trainer.global_rank}.jsonl", "a") as file:
            print(json.dumps(line), file=file)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        final = {"network": list(pl_module.network.state_dict().values()), "ema": pl_module.ema.shadow_params}
        torch.save(final, f"final.rank{trainer.global_rank}.pt")


class CountGraphs(Callback):
    """Compiles by torch's own kernels, which is quick, and leaves what was compiled in ``graphs.rank….json``."""

    def __init__(self) -> None:
        torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="eager")  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        compiled = [module for module in pl_module.modules() if module._compiled_call_impl is not None]
        found = {
            "blocks": len(compiled),
            "graphs": counters["stats"]["unique_graphs"] - 1,  # the probe's
            "breaks": sum(counters["graph_break"].values()),
            "given up": counters["frames"]["total"] - counters["frames"]["ok"],
        }
        with open(f"graphs.rank{trainer.global_rank}.json", "w") as file:
            json.dump(found, file)


class HostWaits(Callback):
    """Leaves in ``waits.rank….json`` where the host read a number of a tensor, and how often the processes talked, in
    the steps from the fourth to the thirteenth."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            SDE.check_times = lambda *_: None  # type: ignore[method-assign, assignment]  # reads them on a CPU alone
            self._counting = _Counting()
            self._counting.__enter__()
        if trainer.global_step == 13:
            self._counting.__exit__(None, None, None)
            with open(f"waits.rank{trainer.global_rank}.json", "w") as file:
                json.dump(self._counting.found, file)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name.startswith(("aten._local_scalar_dense", "c10d")):
            names = (frame.f_globals["__name__"] for frame, _ in traceback.walk_stack(None))
            where = next(module for module in names if module.split(".")[0] in ("lightning", "diffusion_lightning"))
            self.found[f"{name.partition('.default')[0]} in {where}"] += 1
        return function(*args, **(kwargs or {}))


def digest(tensors: Iterable[Tensor]) -> str:
    """Of every bit of the tensors."""
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


class FlippedMNIST(EmbeddedMNIST):
    """Digits that are mirrored at random, as photographs are."""

    flip = True


class BrittleUNet(UNet):
    """A UNet that fails in the calls of training that the environment variable BAD_CALLS lists, counted from 0, or from
    one of them on (``20-``); with BAD_RANK, in the process of that rank alone.

    Args:
        failure: ``"nan"`` or ``"inf"`` as output, or ``"gradient"``: only the derivative is not a number.
        kwargs: those of UNet.
    """

    def __init__(self, failure: str = "nan", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.failure = failure
        self.calls = 0

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        output = super().forward(x, time_signal, labels)
        if not self.training:
            return output
        self.calls += 1
        if os.environ.get("LOCAL_RANK", "0") not in os.environ.get("BAD_RANK", "0 1") or not is_bad(self.calls - 1):
            return output
        if self.failure == "gradient":
            return output + (output - output.detach()).abs().sqrt()  # adds 0, with the derivative 0 · ∞
        return output * float(self.failure)


def is_bad(call: int) -> bool:
    """Whether BAD_CALLS lists this one."""
    for part in filter(None, os.environ.get("BAD_CALLS", "").split(",")):
        first = int(part.rstrip("-"))
        if call == first or (part.endswith("-") and call > first):
            return True
    return False
