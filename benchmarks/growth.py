"""How the cost of training grows: images/s and memory against batch size, image size and number of processes.

    python benchmarks/growth.py --root data

Each point is a run of its own of ``lightning fit --config configs/mnist.yaml`` for some seconds; what it reports of
itself is taken from its metrics.csv: the median of ``perf/examples_per_s`` after the first value, and the last
``perf/memory_gb``, which is the process's largest memory, with the libraries in it. Images of other sizes than 28 are
the digits, resized. Two processes exchange gradients by gloo; they and what they are compared with have batches of 64
in all, and one thread each.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from recipes import BATCH_SIZE, arguments
from results import RESULTS, machine, table, write
from tqdm import tqdm

BATCH_SIZES = (8, 16, 32, 64, 128, 256)
SIZE_BATCH = 32
"""The batch size at all image sizes."""

SIZES = (28, 32, 64, 128)

IMAGES_BETWEEN_VALUES = 128
"""Of 28×28 pixels; fewer of larger ones."""


class Point(NamedTuple):
    """One training."""

    batch_size: int
    """Of all processes together."""
    size: int
    processes: int
    threads: int
    """Of each process."""


def points(threads: int) -> dict[str, list[Point]]:
    """What each panel shows."""
    return {
        "batch size": [Point(batch_size, 28, 1, threads) for batch_size in BATCH_SIZES],
        "image size": [Point(SIZE_BATCH, size, 1, threads) for size in SIZES],
        "processes": list(dict.fromkeys(Point(BATCH_SIZE, 28, *shape) for shape in ((1, 1), (1, threads), (2, 1)))),
    }


def measure(point: Point, root: str, seconds: float, folder: Path) -> dict[str, float]:
    """Run ``lightning fit`` with ``folder`` for the run; return its images/s and memory."""
    every = IMAGES_BETWEEN_VALUES * 28**2 / point.size**2 / point.batch_size
    given = [
        *arguments("mnist", root, folder, batch_size=point.batch_size // point.processes),
        *(f"--data.init_args.image_size={point.size}", f"--trainer.devices={point.processes}"),
        *(f"--trainer.max_time=00:00:00:{seconds:02.0f}", f"--trainer.log_every_n_steps={max(1, round(every))}"),
    ]
    if point.processes > 1:
        given.append("--trainer.strategy=ddp")
    command = [sys.executable, "-m", "diffusion_lightning", "fit", *given]
    environment = os.environ | {"OMP_NUM_THREADS": str(point.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"growth: {point}: {done.stderr.strip().splitlines()[-1]}")
    (path,) = folder.glob("*/version_0/metrics.csv")
    with path.open(newline="") as file:
        return speed_and_memory(csv.DictReader(file))


def speed_and_memory(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Of a run, by its metrics.csv: the first value has the first steps in it, which take longer."""
    rows = [row for row in rows if row["perf/examples_per_s"]]
    if len(rows) < 2:
        raise SystemExit("growth: --seconds: too few for two values of the speed")
    speed = statistics.median(float(row["perf/examples_per_s"]) for row in rows[1:])
    return {"images_per_s": speed, "memory_gb": float(rows[-1]["perf/memory_gb"])}


def page(results: dict[str, Any]) -> str:
    """A table for each panel."""
    parts = [
        "# How the cost of training grows",
        f"`python benchmarks/growth.py`: configs/mnist.yaml, {results['seconds']:g} s for each row. Memory is "
        "that of one process, its libraries included.",
    ]
    columns = ["batch", "image size", "processes", "threads of each", "images/s", "over the first", "memory"]
    for title, rows in results["panels"].items():
        cells = []
        for row in rows:
            speed, over_first = row["images_per_s"], row["images_per_s"] / rows[0]["images_per_s"]
            measured = f"{speed:,.0f}", f"{over_first:.2f}", f"{row['memory_gb']:.2f} GB"
            cells.append([*(row[name] for name in Point._fields), *measured])
        parts += [f"By {title}:", table(columns, cells)]
    return "\n\n".join([*parts, results["machine"]])


def label(title: str, row: Mapping[str, Any]) -> str:
    """What a point is called in a panel."""
    if title == "processes":
        return f"{row['processes']} × {row['threads']}"
    return str(row["batch_size" if title == "batch size" else "size"])


def plot(results: dict[str, Any], path: Path) -> None:
    xlabels = {
        "batch size": "batch size, images of 28×28",
        "image size": f"side of the images, batches of {SIZE_BATCH}",
        "processes": f"processes × threads of each, batches of {BATCH_SIZE} in all",
    }
    figure, axes = plt.subplots(1, len(results["panels"]), figsize=(12, 3.6), layout="constrained")
    for panel, (title, rows) in zip(axes, results["panels"].items(), strict=True):
        labels = [label(title, row) for row in rows]
        bars = panel.bar(labels, [row["images_per_s"] for row in rows], color="C0", alpha=0.6)
        panel.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        panel.set(xlabel=xlabels[title], ylabel="images/s (bars)")
        memory = panel.twinx()
        memory.plot(labels, [row["memory_gb"] for row in rows], "o-", color="C1")
        memory.set(ylabel="memory of a process, GB (line)", ylim=(0, None))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--threads", type=int, default=2, help="of a single process")
    parser.add_argument("--seconds", type=int, default=10, help="of training for each point, below 60")
    options = parser.parse_args()
    if not 1 <= options.seconds < 60:
        parser.error(f"--seconds: {options.seconds}: must be in 1…59")
    torch.set_num_threads(options.threads)  # for the machine's line
    panels = points(options.threads)
    measured: dict[Point, dict[str, float]] = {}
    for point in tqdm(list(dict.fromkeys(itertools.chain(*panels.values()))), desc="points", unit="run"):
        with tempfile.TemporaryDirectory() as folder:
            measured[point] = measure(point, options.root, options.seconds, Path(folder))
    results = {
        "seconds": options.seconds,
        "machine": machine(),
        "panels": {title: [point._asdict() | measured[point] for point in row] for title, row in panels.items()},
    }
    write("growth", results, page(results))
    plot(results, RESULTS / "growth.png")


if __name__ == "__main__":
    main()
