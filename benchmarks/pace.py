"""How many optimizer steps a minute is, for each system: measured in turns with ours, and kept.

A processor's speed varies, and other work may run beside a race. So the race counts steps, not seconds: here every
system and ours train in turn, each in a process of its own, for some seconds a turn, and each turn is compared with
that of ours just before it. Ours makes r steps a second, the median of its first turns, and a system r times the median
of its ratios: a change of the machine's speed meets both sides of a ratio, and r, which it may meet, is one for all.
Whatever runs beside the training itself changes nothing then. What was measured is kept in a file; systems that come
later are compared with ours as fast as it is by then, and get r of the first time.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from systems import system_class
from systems.base import Save
from tqdm import tqdm

ANCHOR = "ours"

WARM_UP = 5
"""Steps before a system's first turn."""

WITHOUT_END = 100_000
"""Planned steps of a training that is only timed."""


class Turns:
    """A watch that lets a training go on for as many seconds as it is told, again and again, and tells its speed."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.first: int | None = None

    def __call__(self, steps: int, save: Save) -> bool:
        now = time.perf_counter()
        if steps < WARM_UP or (self.first is not None and now < self.end):
            return True
        if self.first is not None:
            self.pipe.send((steps - self.first) / (now - self.began))
        seconds = self.pipe.recv()
        self.first, self.began = steps, time.perf_counter()
        self.end = self.began + seconds
        return seconds > 0


def _take_turns(name: str, root: str, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        system_class(name)(root, WITHOUT_END).train(Turns(pipe), Path(folder))


class _Contestant:
    """A training in a process of its own that waits for its turns."""

    def __init__(self, name: str, root: str, threads: int) -> None:
        context = get_context("spawn")
        self.name = name
        self.pipe, its = context.Pipe()
        self.process = context.Process(target=_take_turns, args=(name, root, threads, its))
        self.process.start()
        its.close()  # so that its end is seen here

    def turn(self, seconds: float) -> float:
        """Optimizer steps a second."""
        self.pipe.send(seconds)
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(
                f"{self.name}: its training ended while it was timed; its own lines above say why"
            ) from None

    def __enter__(self) -> "_Contestant":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.is_alive():
            self.pipe.send(0)
        self.process.join()


def measure(path: Path, names: Iterable[str], root: str, threads: int, seconds: float, turns: int) -> dict[str, float]:
    """Steps a second of these systems and those before, of which what is missing is measured and kept in ``path``."""
    new = {"threads": threads, "seconds": seconds, "turns": turns, ANCHOR: [], "ratios": {}}
    kept = json.loads(path.read_text()) if path.is_file() else new
    if kept["threads"] != threads:
        raise SystemExit(f"--threads {threads}: {path} was measured with {kept['threads']}: give another --folder")
    seconds, turns = kept["seconds"], kept["turns"]  # for those that come later too
    missing = [name for name in names if name != ANCHOR and name not in kept["ratios"]]
    if missing or not kept[ANCHOR]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Contestant(ANCHOR, root, threads) as ours:
            ours.turn(seconds)  # the first warms up
            kept[ANCHOR] = kept[ANCHOR] or [ours.turn(seconds) for _ in range(turns)]
            path.write_text(json.dumps(kept, indent=1))
            for name in tqdm(missing, desc="pace", unit="system"):
                with _Contestant(name, root, threads) as other:
                    other.turn(seconds)
                    pairs = [(ours.turn(seconds), other.turn(seconds)) for _ in range(turns)]
                kept["ratios"][name] = [rate / of_ours for of_ours, rate in pairs]
                path.write_text(json.dumps(kept, indent=1))
    return rates(kept)


def rates(kept: dict[str, Any]) -> dict[str, float]:
    """Steps a second of everyone, of what was measured."""
    ours = statistics.median(kept[ANCHOR])
    return {ANCHOR: ours} | {name: ours * statistics.median(ratios) for name, ratios in kept["ratios"].items()}


def steps_in(minutes: float, rate: float) -> int:
    """Optimizer steps in so many minutes, at least one."""
    return max(1, round(60 * minutes * rate))
