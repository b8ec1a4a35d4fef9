"""Weak scaling: what becomes of a training step as processes are added, each with as many examples as before.

    python benchmarks/scaling.py

1, 2 and 4 processes on this machine train ``configs/mnist.yaml``'s network on the embedded digits by DDP over gloo, one
thread each, 32 digits a process. A step is split into data (the batch comes), draws (times and noise), compute
(forward, backward, optimizer, EMA), waiting (for the slowest process, at a barrier put before each reduction for this
measurement alone) and reduction (the gradients' sum). The first three are processor time of the process, for four
processes share two cores here; the last two are by the clock. Collectives and their bytes are counted by a profiler in
further steps.

The draws are then made as one process of 1, 8 and 64 makes them, of 32 pictures of 3×256×256: their time and the memory
that the process came to need, by the release of 0.2.0, which drew for all processes, and now.

From the counts the page has a model of 8 to 512 GPUs on paper; its assumptions stand above it.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from results import machine, table, write
from torch import distributed
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from diffusion_lightning import (
    VPSDE,
    DenoisingScoreMatching,
    EmbeddedMNIST,
    GracefulStop,
    KarrasPreconditioning,
    KarrasSDE,
    ScoreModule,
    UNet,
)
from diffusion_lightning.training.draws import draw_all, draw_rows

PROCESSES = 1, 2, 4
BATCH_SIZE = 32
"""Of each process."""
WARM_UP, TIMED, PROFILED = 6, 24, 4
"""Steps."""
PARTS = "data", "draws", "compute", "waiting", "reduction"

PRETENDED = 1, 8, 64
PICTURES = 32, 3, 256, 256


class Split(Callback):
    """Times the parts of each step, and counts the collectives of the last few."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self._now = dict.fromkeys(PARTS, 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        draw = pl_module._draw

        def timed(*args: Any) -> Any:
            with self._part("draws"):
                return draw(*args)

        pl_module._draw = timed
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, self._reduce)  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        now = time.thread_time()
        self._now["data"] += now - getattr(self, "_end", now)
        self._start = now
        if trainer.global_step == WARM_UP + TIMED:
            self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self._profile.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._end = time.thread_time()
        self._now["compute"] = self._end - self._start - self._now["draws"] - self._reducing
        for part, seconds in self._now.items():
            self.seconds[part].append(seconds)
        self._now, self._reducing = dict.fromkeys(PARTS, 0.0), 0.0
        if trainer.global_step == WARM_UP + TIMED + PROFILED:
            self._profile.__exit__(None, None, None)

    _reducing = 0.0  # processor time of waiting and reduction, which is no part of the computing

    def _reduce(self, state: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        before = time.thread_time()
        with self._part("waiting", time.perf_counter):
            distributed.barrier()
        with self._part("reduction", time.perf_counter):
            whole = bucket.buffer().div_(distributed.get_world_size())
            distributed.all_reduce(whole)
        self._reducing += time.thread_time() - before
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(whole)
        return future

    @contextmanager
    def _part(self, name: str, clock: Any = time.thread_time) -> Iterator[None]:
        start = clock()
        yield
        self._now[name] += clock() - start

    def found(self) -> dict[str, Any]:
        """Medians of a step in milliseconds, and the collectives of one with their bytes; those of the barriers not."""
        timed = slice(WARM_UP, WARM_UP + TIMED)
        medians = {part: 1000 * statistics.median(values[timed]) for part, values in self.seconds.items()}
        reductions = [event for event in self._profile.events() if event.name.endswith(":all_reduce")]
        sizes = [math.prod(event.input_shapes[0]) for event in reductions]
        gradients = [size for size in sizes if size > 8]  # the hosts' answers are fewer numbers
        return {
            "milliseconds": medians,
            "gradient_reductions": len(gradients) / PROFILED,
            "gradient_bytes": 4 * sum(gradients) / PROFILED,
            "host_agreements": (len(sizes) - len(gradients)) / PROFILED,
        }


def train(processes: int, path: Path) -> None:
    """One of the processes; the first writes what it found."""
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    network = UNet(channels=(32, 64), num_res_blocks=1, num_classes=10, patch_size=2)
    module = ScoreModule(network, KarrasSDE(), KarrasPreconditioning(), DenoisingScoreMatching("karras"))
    split = Split()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        max_steps=WARM_UP + TIMED + PROFILED + 1,
        limit_val_batches=0,
        log_every_n_steps=1000,
        logger=False,
        callbacks=[split, GracefulStop()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=EmbeddedMNIST(batch_size=BATCH_SIZE))
    if trainer.is_global_zero:
        path.write_text(json.dumps({"weights": sum(p.numel() for p in network.parameters()), **split.found()}))


def draw(processes: int, former: bool) -> None:
    """Make the draws of one process of so many; prints seconds and the gigabytes that the process came to need."""
    torch.set_num_threads(1)
    x = torch.zeros(PICTURES)
    function = draw_all if former else draw_rows
    function(DenoisingScoreMatching(), VPSDE(), x[:1], 1, 0, 0, 1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    function(DenoisingScoreMatching(), VPSDE(), x, len(x), 0, processes - 1, processes)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "gigabytes": memory / 2**20}))


def call(*arguments: str) -> str:
    """Run this file in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"scaling: {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def on_paper(
    gpus: int,
    weights: float = 55.7e6,
    step_seconds: float = 0.12,
    inside: float = 300e9,
    between: float = 40e9,
    latency: float = 20e-6,
    per_machine: int = 8,
) -> dict[str, float]:
    """Seconds of a step's reduction by a ring of so many GPUs, and the share of a step that is computing.

    A ring moves 2(n − 1)/n of the gradient's bytes over its slowest link, in 2(n − 1) turns of that latency. The share
    is between nothing of it hidden behind the backward pass and as much as the backward pass, two thirds of a step.

    Args:
        gpus: n, each with as many examples.
        weights: of the network, 4 bytes each.
        step_seconds: of the computing.
        inside: bytes/s between the GPUs of one machine.
        between: bytes/s of each GPU to another machine.
        latency: seconds of each turn.
        per_machine: GPUs of one machine.
    """
    link = inside if gpus <= per_machine else between
    reduction = 2 * (gpus - 1) / gpus * 4 * weights / link + 2 * (gpus - 1) * latency
    shown = max(0.0, reduction - 2 / 3 * step_seconds)
    return {
        "reduction": reduction,
        "share_without_overlap": step_seconds / (step_seconds + reduction),
        "share_with_overlap": step_seconds / (step_seconds + shown),
    }


def page(results: dict[str, Any]) -> str:
    """The tables."""
    rows, first = [], sum(results["training"]["1"]["milliseconds"].values())
    for processes, found in results["training"].items():
        times = [found["milliseconds"][part] for part in PARTS]
        counts = found["gradient_reductions"], found["host_agreements"], found["gradient_bytes"] / 1e6
        cells = [f"{t:.2f}" for t in times] + [f"{sum(times[:3]) / first:.2f}"]
        rows.append([processes, *cells, f"{counts[0]:g}", f"{counts[1]:g}", f"{counts[2]:.2f} MB"])
    columns = [*("processes", *(f"{part}, ms" for part in PARTS)), "data to compute over one's"]
    columns += ["reductions", "agreements of hosts", "bytes"]
    drawn = [
        [n, *(f"{found[key]:.2f} {unit}" for found in pair for key, unit in (("seconds", "s"), ("gigabytes", "GB")))]
        for n, pair in results["draws"].items()
    ]
    paper = []
    for gpus in (8, 16, 64, 128, 512):
        model = on_paper(gpus)
        shares = model["share_without_overlap"], model["share_with_overlap"]
        paper.append([gpus, f"{1000 * model['reduction']:.1f} ms", *(f"{100 * share:.0f} %" for share in shares)])
    return "\n\n".join(
        [
            "# Weak scaling",
            f"`python benchmarks/scaling.py`: {results['training']['1']['weights']:,} weights, {BATCH_SIZE} digits a "
            "process. What is there once for each process does not grow; the reduction does, and here, where four "
            "processes share two cores, the waiting.",
            table(columns, rows),
            f"The draws of one process, of {PICTURES[0]} pictures of 3×256×256:",
            table(["of processes", "0.2.0, time", "memory", "now, time", "memory"], drawn),
            "On paper, from one reduction of 4 bytes a weight and a step, for EDM's network for CIFAR-10: 55.7 million "
            "weights, 0.12 s of computing a step on each GPU, a ring at 300 GB/s inside of a machine of eight and 40 "
            "GB/s of each GPU between machines, 20 µs a turn. These are assumptions, not measurements:",
            table(
                ["GPUs", "reduction", "share of computing, nothing hidden", "hidden behind the backward pass"], paper
            ),
            results["machine"],
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--draw", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train(int(options.train[0]), Path(options.train[1]))
    if options.draw:
        return draw(int(options.draw[0]), options.draw[1] == "former")
    torch.set_num_threads(1)  # for the machine's line
    results: dict[str, Any] = {"machine": machine(), "training": {}, "draws": {}}
    with tempfile.TemporaryDirectory() as folder:
        for processes in tqdm(PROCESSES, desc="trainings", unit="run"):
            path = Path(folder) / f"{processes}.json"
            call("--train", str(processes), str(path))
            results["training"][str(processes)] = json.loads(path.read_text())
    for processes in tqdm(PRETENDED, desc="draws", unit="run"):
        results["draws"][str(processes)] = [
            json.loads(call("--draw", str(processes), how)) for how in ("former", "now")
        ]
    write("scaling", results, page(results))


if __name__ == "__main__":
    main()
