"""FID against minutes of training: this framework beside what people would otherwise pick, on the same digits.

    python benchmarks/quality.py --minutes 10 --systems ours,document5,diffusers,denoising-diffusion-pytorch,azula

Every system trains alone on the machine, with the same threads, and saves at an eighth, a quarter, a half and the whole
of the minutes; its learning rate's schedule is for as many steps as it can make in that time, by its speed in the first
seconds. Then each draws 1,000 digits at every mark by the sampler in its settings; how long that takes is told by
``sampling.py``. FIDs are in the features of the shipped digit classifier, against the 60,000 training digits. What a
run has trained and drawn is kept in ``--folder`` and not done again; the results of systems that are not named stay in
the table.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from alone import alone
from results import RESULTS, machine, read, table, write
from systems import SYSTEMS, system_class
from systems.base import digits
from torch import Tensor
from torchvision.utils import save_image

from diffusion_lightning.callbacks.performance import peak_memory_gb
from diffusion_lightning.images import to_uint8
from diffusion_lightning.metrics.features import build_features
from diffusion_lightning.metrics.fid import ReferenceFID
from diffusion_lightning.randomness import draw_some

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
TRIAL = (5, 20)
"""Seconds between which the speed is taken."""

CPU = torch.device("cpu")


def fid(root: str, images: Tensor) -> float:
    """Of uint8 images against the training digits, in the digit classifier's features."""
    metric = ReferenceFID(build_features("mnist")[1])
    metric.set_reference(digits(root).split(500), "mnist-train")
    for batch in images.split(250):
        metric.update(batch)
    return metric.compute()


def train(name: str, root: str, minutes: float, threads: int, folder: Path) -> None:
    """Train one system, and write down what it reached."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    seconds = 60 * minutes
    with tempfile.TemporaryDirectory() as scratch:
        trial = system_class(name)(root, 1000).train(TRIAL, Path(scratch))
    (first, steps), (last, more_steps) = trial
    planned = int(0.98 * seconds * (more_steps - steps) / (last - first))
    folder.mkdir(parents=True, exist_ok=True)
    reached = system_class(name)(root, planned).train([share * seconds for share in SHARES], folder)
    result = {"reached": reached, "planned_steps": planned, "memory_gb": peak_memory_gb(CPU), "machine": machine()}
    (folder / "trained.json").write_text(json.dumps(result))


def judge(name: str, root: str, mark: int, num: int, threads: int, folder: Path) -> None:
    """Draw by what was saved at one mark; write down the FID, the memory and the first 64 digits."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    system, path = system_class(name), folder / f"{mark}.pt"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        samples = system.sample(path, num, 250)
    result = {"memory_gb": peak_memory_gb(CPU)}
    images = to_uint8(samples)
    save_image(images[:64] / 255, folder / f"{mark}.png", nrow=8, padding=2)
    result |= {"fid": fid(root, images), "parameters": system.parameters_of(path), "nfe": system.nfe}
    (folder / f"{mark}.json").write_text(json.dumps(result))


def _some_test_digits(root: str, num: int) -> Tensor:
    """The first half of MNIST's test set was written more neatly than the second."""
    images = digits(root, train=False)
    return images[draw_some(num, len(images), seed=0)]


def collect(name: str, minutes: float, num: int, folder: Path) -> dict[str, Any]:
    """The row of one system."""
    trained = json.loads((folder / "trained.json").read_text())
    judged = [json.loads((folder / f"{mark}.json").read_text()) for mark in range(len(SHARES))]
    (seconds, steps) = trained["reached"][-1]
    system = system_class(name)
    return {
        "settings": system.settings,
        "minutes": [reached[0] / 60 for reached in trained["reached"]],
        "fid": [result["fid"] for result in judged],
        "steps": steps,
        "steps_per_s": steps / seconds,
        "parameters": judged[-1]["parameters"],
        "nfe": judged[-1]["nfe"],
        "samples": num,
        "training_memory_gb": trained["memory_gb"],
        "sampling_memory_gb": judged[-1]["memory_gb"],
        "machine": trained["machine"],
    }


def page(results: dict[str, Any]) -> str:
    """The table, and how every system was set."""
    rows = []
    for name, row in results["systems"].items():
        rows.append(
            [
                name,
                f"{row['parameters'] / 1e6:.2f} M",
                row["steps"],
                *(f"{value:.1f}" for value in row["fid"]),
                row["nfe"],
                f"{row['training_memory_gb']:.2f} / {row['sampling_memory_gb']:.2f} GB",
            ]
        )
    marks = [f"FID after {results['minutes'] * share:g} min" for share in SHARES]
    columns = ["system", "weights", "steps", *marks, "NFE", "memory training / sampling"]
    settings = "\n".join(f"- **{name}**: {row['settings']}." for name, row in results["systems"].items())
    machines = sorted({row["machine"] for row in results["systems"].values()})
    return (
        f"# Quality against minutes of training\n\n`python benchmarks/quality.py`: MNIST, {results['samples']:,} "
        f"samples, FID in the features of the shipped digit classifier against the 60,000 training digits; as many "
        f"real test digits have {results['floor']:.2f}.\n\n{table(columns, rows)}\n\n{settings}\n\n"
        + "\n\n".join(machines)
    )


def plot(results: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    for name, row in results["systems"].items():
        axes.plot(row["minutes"], row["fid"], "o-", label=name, linewidth=2.5 if name == "ours" else 1.5)
    axes.axhline(results["floor"], color="gray", linestyle=":", label="real test digits")
    axes.set(xlabel="minutes of training on two CPU cores", ylabel=f"FID, {results['samples']:,} samples")
    axes.set(xscale="log", yscale="log")
    ticks = [results["minutes"] * share for share in SHARES]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each system")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, by commas")
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    names = options.systems.split(",")
    if unknown := set(names) - set(SYSTEMS):
        parser.error(f"--systems: {', '.join(sorted(unknown))}: must be among {', '.join(SYSTEMS)}")
    folders = {name: options.folder / f"{name}-{options.minutes:g}" for name in names}
    for name, folder in folders.items():
        if not (folder / "trained.json").is_file():
            alone(train, name, options.root, options.minutes, options.threads, folder)
    for name, folder in folders.items():
        for mark in reversed(range(len(SHARES))):
            if not (folder / f"{mark}.json").is_file():
                alone(judge, name, options.root, mark, options.samples, options.threads, folder)
    results = read("quality")
    if (results.get("minutes"), results.get("samples")) != (options.minutes, options.samples):
        results = {"minutes": options.minutes, "samples": options.samples, "systems": {}}
    results["floor"] = fid(options.root, _some_test_digits(options.root, options.samples))
    for name, folder in folders.items():
        results["systems"][name] = collect(name, options.minutes, options.samples, folder)
        shutil.copy(folder / f"{len(SHARES) - 1}.png", _made(RESULTS) / f"quality_{name}.png")
    results["systems"] = {name: results["systems"][name] for name in SYSTEMS if name in results["systems"]}
    plot(results, RESULTS / "quality.png")
    write("quality", results, page(results))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
