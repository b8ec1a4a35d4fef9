"""The race: every system trains for as many steps as fill its minutes, in parts that end at the marks, and is judged.

A part is one process that goes on from what the part before has saved, all of its state, so a race may stop anywhere
and goes on with the part that was not finished. The folder of a system in ``--folder`` has, by the number of the mark,
``0.pt`` … ``3.pt``, ``0.trained.json``, ``0.json`` with what it is worth, ``0.png``, and ``samplers.json``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import judging
import torch
from alone import alone
from pace import ANCHOR, steps_in
from results import machine
from systems import system_class
from systems.base import Save
from tqdm import tqdm

from diffusion_lightning.callbacks.performance import peak_memory_gb

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of the minutes: the marks."""

SAMPLERS = "samplers.json"

DRAWN, DRAWING_TURNS = 50, 3
"""Samples of a turn in which drawing is timed, and how many turns."""


def marks(minutes: float, rate: float) -> list[int]:
    """The steps at which a training of these minutes is judged, each at least one after the one before.

    Args:
        minutes: of the whole.
        rate: steps a second.
    """
    steps: list[int] = []
    for share in SHARES:
        steps.append(max(steps_in(share * minutes, rate), 1 + (steps[-1] if steps else 0)))
    return steps


def train_part(name: str, root: str, planned: int, until: int, start: Path | None, path: Path, threads: int) -> None:
    """Train one system up to so many steps of those that are planned, and save it; only then it says that it is done.

    Args:
        name: of the system.
        root: folder of MNIST.
        planned: steps that its learning rate's schedule is for.
        until: steps at which this part ends.
        start: what the part before has saved; None for the first.
        path: where it is saved.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=until, desc=f"train {name}", unit="step") as bar:

        def watch(steps: int, save: Save) -> bool:
            bar.update(steps - bar.n)
            if steps < until:
                return True
            save(path)
            return False

        system_class(name)(root, planned).train(watch, path.parent, start)
    path.with_suffix(".json").unlink(missing_ok=True)  # what was there before was worth that
    trained = {"steps": until, "memory_gb": peak_memory_gb(torch.device("cpu")), "machine": machine()}
    finished(path).write_text(json.dumps(trained))


def finished(path: Path) -> Path:
    """The file that says that what was saved in ``path`` is whole."""
    return path.with_suffix(".trained.json")


def train(name: str, root: str, steps: Sequence[int], planned: int, threads: int, paths: Sequence[Path]) -> None:
    """The parts up to each of these steps that are not there yet."""
    start = None
    for until, path in zip(steps, paths, strict=True):
        if not finished(path).is_file():
            alone(train_part, name, root, planned, until, start, path, threads)
        start = path


def of_folder(folder: Path) -> list[Path]:
    """What is saved at each mark."""
    return [folder / f"{mark}.pt" for mark in range(len(SHARES))]


def sampler_of(folder: Path) -> dict[str, Any]:
    """What trying a system's samplers has found so far."""
    return judging.samplers_tried(folder / SAMPLERS)


def judged(folder: Path) -> dict[str, Any]:
    """What the last of what was saved is worth."""
    return json.loads(of_folder(folder)[-1].with_suffix(".json").read_text())


def judge(name: str, root: str, num: int, threads: int, folder: Path, trials: int) -> None:
    """Choose the sampler on the last of what was saved, and judge all by it."""
    paths = of_folder(folder)
    if "best" not in sampler_of(folder):
        alone(judging.choose, name, root, paths[-1], trials, threads, folder / SAMPLERS)
    sampler = sampler_of(folder)["best"]
    for path in reversed(paths):
        if not judging.is_judged(path, num):
            alone(judging.judge, name, root, path, num, sampler, threads)


def time_drawing(name: str, root: str, threads: int, folders: dict[str, Path]) -> None:
    """How long it takes to draw beside ours; nothing as long as ours is not trained."""
    path, ours = folders[name] / "drawing.json", folders[ANCHOR]
    if "best" not in sampler_of(ours):
        return
    samplers = {each: sampler_of(folders[each])["best"] for each in dict.fromkeys((ANCHOR, name))}
    if path.is_file() and json.loads(path.read_text())["samplers"] == samplers:
        return
    drawn_by = {each: (of_folder(folders[each])[-1], sampler) for each, sampler in samplers.items()}
    times = alone(judging.interleaved, root, drawn_by, DRAWN, DRAWING_TURNS, threads)
    over_ours = judging.over(times, name, ANCHOR)
    path.write_text(json.dumps({"samplers": samplers, "over_ours": over_ours, "seconds_of_ours": times[ANCHOR]}))


def collect(name: str, rate: float, folder: Path) -> dict[str, Any]:
    """The row of one system."""
    system, paths, sampler = system_class(name), of_folder(folder), sampler_of(folder)
    trained = [json.loads(finished(path).read_text()) for path in paths]
    judged = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    drawing = folder / "drawing.json"
    return {
        "settings": system.settings,
        "sampler": sampler["best"],
        "samplers": sampler["tried"],
        "evaluations": judged[-1]["evaluations"],
        "steps": [row["steps"] for row in trained],
        "images_per_s": rate * system.batch_size,
        "fid": {feature: [row["fid"][feature] for row in judged] for feature in judging.KNOWN},
        "legible": [row["legible"] for row in judged],
        "agreement": [row["agreement"] for row in judged] if system.has_classes else None,
        "drawing": json.loads(drawing.read_text()) if drawing.is_file() else None,
        "parameters": judged[-1]["parameters"],
        "training_memory_gb": max(row["memory_gb"] for row in trained),
        "sampling_memory_gb": judged[-1]["memory_gb"],
        "machine": trained[-1]["machine"],
    }
