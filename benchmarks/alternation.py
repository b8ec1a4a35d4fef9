"""Speeds of trainings that take turns in one process, so that a change of the machine's speed meets all of them."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bare_loop import BareLoop
from lightning.pytorch import Callback, Trainer
from systems import system_class
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from diffusion_lightning import ScoreModule
from diffusion_lightning.training.bf16 import has_bf16_units

WARM_UP = 3
"""Steps before the first block, of everyone."""

BARE, EQUAL = "bare loop", "diffusers-equal"

WAITING = ("[_TrainingEpochLoop].train_dataloader_next", "[Strategy]SingleDeviceStrategy.batch_to_device")
"""How Lightning's profiling calls the time until a batch is there, and on the device."""


class Training(NamedTuple):
    """One of those that take turns."""

    step: Callable[[], None]
    batch_size: int
    weights: int
    settings: str


def block(training: Training, seconds: float, device: torch.device) -> float:
    """Images per second of as many steps as fill these seconds, at least one."""
    steps, began = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - began < seconds:
        training.step()
        steps += 1
    synchronize(device)
    return steps * training.batch_size / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper one."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def matrix_rate(device: torch.device, bf16: bool) -> float:
    """Operations per second in the product of two large matrices: the best of ten."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


class Alternation(Callback):
    """Lets others train between blocks of a fit's own steps, and ends the fit when all have had their turns.

    Every block of another's is compared with the block of the fit just before it. A step of the fit is everything from
    the start of one batch to the start of the next: data, transfer, hooks, logging, EMA, report. After each of its
    blocks one update of the EMA is timed by itself. The trainer's profiler must be Lightning's simple one.

    Args:
        names: of the others: ``"bare loop"``, the fit's recipe without Lightning; ``"diffusers-equal"``, the same loop
            with diffusers' U-Net of equal depth and weights; or one of the benchmark's systems.
        root: folder of the systems' digits.
        seconds: of a block.
        rounds: turns of each.
        path: where the result goes, as JSON.
    """

    def __init__(self, names: list[str], root: str, seconds: float, rounds: int, path: str) -> None:
        self.names, self.root, self.seconds, self.rounds, self.path = names, root, seconds, rounds, Path(path)

    def setup(self, trainer: Trainer, pl_module: ScoreModule, stage: str) -> None:
        self.profiler = trainer.profiler  # now, before a RunReport puts its own before it

    def on_train_start(self, trainer: Trainer, pl_module: ScoreModule) -> None:
        self.module, self.data, self.device = pl_module, trainer.datamodule, pl_module.device
        self.bf16 = has_bf16_units(self.device.type)
        self.others = {name: self._other(name) for name in self.names}
        for other in self.others.values():
            for _ in range(WARM_UP):
                other.step()
        self.order = [name for _ in range(self.rounds) for name in self.names]
        self.turns: list[dict[str, Any]] = []
        self.ema_shares: list[float] = []
        self.total_seconds, self.steps = 0.0, -WARM_UP
        self.bar = tqdm(total=len(self.order), desc="trainings in turn", unit="block")

    def on_train_batch_start(self, trainer: Trainer, pl_module: ScoreModule, batch: Any, batch_idx: int) -> None:
        if self.steps == 0:
            synchronize(self.device)
            self.waited_before = self._waited()
        if self.steps <= 0:
            self.began = time.perf_counter()
        elif time.perf_counter() - self.began >= self.seconds:
            self._turn()
            if len(self.turns) == len(self.order):
                trainer.should_stop = True
                self.bar.close()
                self._write()
            self.steps, self.began = 0, time.perf_counter()
        self.steps += 1

    def _turn(self) -> None:
        """End a block of the fit's; one of another's follows."""
        synchronize(self.device)
        seconds = time.perf_counter() - self.began
        self.total_seconds += seconds
        began = time.perf_counter()
        self.module.ema.update()
        synchronize(self.device)
        self.ema_shares.append((time.perf_counter() - began) * self.steps / seconds)
        name = self.order[len(self.turns)]
        rate = block(self.others[name], self.seconds, self.device)
        self.turns.append({"name": name, "ours": self.steps * self.data.batch_size / seconds, "rate": rate})
        self.bar.update()

    def _waited(self) -> float:
        """Seconds that the fit has waited for data so far."""
        return sum(sum(self.profiler.recorded_durations[action]) for action in WAITING)

    def _other(self, name: str) -> Training:
        if name in (BARE, EQUAL):
            network = deepcopy(self.module.network)
            settings = "the same network, loss, clipping, optimizer, EMA and precision in a loop by hand"
            if name == EQUAL:
                from equal_unet import EqualUNet  # diffusers need not be there for the others

                network = EqualUNet(network)
                widths = ", ".join(map(str, network.unet.config.block_out_channels))
                settings = f"that loop with UNet2DModel: as deep, with {widths} channels for as many weights"
            loop = BareLoop(self.module, self.data, network, self.device, self.bf16, self.module.hparams["compile"])
            return Training(loop.step, loop.batch_size, sum(p.numel() for p in loop.parameters), settings)
        system = system_class(name)
        peer = system(self.root, 10_000)
        return Training(peer.step, peer.batch_size, system.parameters_of(Path()), system.settings)

    def _write(self) -> None:
        waited = self._waited() - self.waited_before
        # a copy of a compiled network is not compiled
        loop = BareLoop(self.module, self.data, deepcopy(self.module.network), self.device, self.bf16)
        with FlopCounterMode(display=False) as counter:
            loop.step()
        result = {
            "batch_size": loop.batch_size,
            "weights": sum(p.numel() for p in loop.parameters),
            "bf16": self.bf16,
            "turns": self.turns,
            "others": {
                name: {"batch_size": other.batch_size, "weights": other.weights, "settings": other.settings}
                for name, other in self.others.items()
            },
            "ema_share": quartiles(self.ema_shares),
            "waiting_share": waited / self.total_seconds,
            "flop_per_image": counter.get_total_flops() / loop.batch_size,
            "matrix_rate": matrix_rate(self.device, self.bf16),
        }
        self.path.write_text(json.dumps(result))
