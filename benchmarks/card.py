"""What ``benchmarks/card.sh`` asks for before, and makes of it afterwards.

    python benchmarks/card.py check --device cuda      one line, and 1, if something is missing that is needed
    python benchmarks/card.py folder                   where the card's results go
    python benchmarks/card.py report …                 card.json and card.md from what the parts have left

A part's results are what it left; of a part that failed, that it did, and after how long.
"""

import argparse
import csv
import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

NEEDED = (
    *("torch", "lightning", "torchvision", "torchmetrics", "torch_fidelity", "wandb", "torchdiffeq", "torch_ema"),
    *("jsonargparse", "rich", "safetensors", "tqdm", "matplotlib", "PIL", "timm", "shtab", "jinja2", "pytest", "xdist"),
)
"""What the package and its tests import."""

LOWEST_TORCH = (2, 6)

OUTCOMES = ("passed", "failed", "skipped")

ENDINGS = {"failure": "failed", "error": "failed", "skipped": "skipped"}
"""What a JUnit file calls those that have not passed."""


def problem(device: str) -> str | None:
    """In one line, why the parts cannot run here; None if they can."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        return f"this Python lacks {', '.join(missing)}; nothing is installed by this script"
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < LOWEST_TORCH:
        return f"torch {torch.__version__} is here: at least {'.'.join(map(str, LOWEST_TORCH))} is needed"
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU here; --cpu --output FOLDER tries the script without one"
    return None


def card(device: str) -> dict[str, Any]:
    """The card, its driver and the versions."""
    import torch
    from results import machine

    known = {"card": platform.processor() or platform.machine(), "driver": None, "machine": machine()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
        except (OSError, subprocess.CalledProcessError):
            driver = None
        known |= {"card": properties.name, "driver": driver, "memory_gb": round(properties.total_memory / 1e9, 1)}
        known |= {"capability": f"{properties.major}.{properties.minor}", "cudnn": torch.backends.cudnn.version()}
    return known | {"torch": torch.__version__, "cuda": torch.version.cuda}


def folder_name(name: str) -> str:
    """A card's name in small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def parts(path: Path) -> dict[str, dict[str, int]]:
    """Of each part its exit code, seconds and limit, from lines ``name code seconds limit``."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {name: {"code": int(code), "seconds": int(took), "limit": int(limit)} for name, code, took, limit in lines}


def tests(path: Path) -> list[dict[str, Any]]:
    """Each test of a JUnit file: how it ended, its seconds and figures, and the first line of what was wrong."""
    found = []
    for case in ElementTree.parse(path).iter("testcase") if path.is_file() else ():
        figures = {figure.get("name"): figure.get("value") for figure in case.iter("property")}
        ending = next((child for child in case if child.tag in ENDINGS), None)
        outcome = "passed" if ending is None else ENDINGS[ending.tag]
        said = None if ending is None else (ending.get("message") or "").split("\n")[0]
        seconds = float(case.get("time") or 0)
        found.append({"name": case.get("name"), "outcome": outcome, "seconds": seconds, "said": said} | figures)
    return found


def training(folder: Path) -> dict[str, Any]:
    """What the run's ``metrics.csv`` says: steps, speed, peak memory, and the loss of the first and the last epoch."""
    path = next(iter(sorted(folder.rglob("metrics.csv"))), None)
    if path is None:
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))

    def values(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    speeds, losses = values("perf/examples_per_s"), values("train/loss_epoch") or values("train/loss_step")
    return {
        "steps": int(max(values("step"), default=-1)) + 1,
        "images_per_s": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "memory_gb": max(values("perf/memory_gb"), default=None),
        "losses": [losses[0], losses[-1]] if losses else None,
    }


def page(results: dict[str, Any]) -> str:
    """The tables."""
    from results import table

    about = ("card", "driver", "memory_gb", "capability", "torch", "cuda", "cudnn")
    toy = " --cpu --output FOLDER`: a toy, to see that the script works" if results["device"] == "cpu" else "`"
    counts = [f"{sum(test['outcome'] == kind for test in results['tests'])} {kind}" for kind in OUTCOMES]
    text = [
        f"# {results['card']}",
        f"`bash benchmarks/card.sh{toy}",
        table(["", ""], [[name, results[name]] for name in about if results.get(name)]),
        table(["part", "", "time", "at most"], [_part_row(*item) for item in results["parts"].items()]),
        "## Tests",
        f"{', '.join(counts)}. A deviation is the largest from the CPU's values, over the larger of 1 and the largest "
        "of these.",
        table(["test", "", "time", "deviation", ""], [_test_row(test) for test in results["tests"]]),
        "## Training",
        f"configs/cifar10.yaml with overlays/gpu.yaml on {results['pictures']}: {_sentence(results['training'])}.",
    ]
    if results["has_grid"]:
        text.append("![Samples of it](samples.png)")
    if results["has_throughput"]:
        text += ["## Throughput", "In full: [throughput](throughput.md)", "![Images per second](throughput.png)"]
    return "\n\n".join([*text, results["machine"]])


def _part_row(name: str, part: dict[str, int]) -> list[str]:
    ended = {0: "done", 124: "out of time", 137: "out of time"}.get(part["code"], f"failed ({part['code']})")
    return [name, ended, f"{part['seconds']} s", f"{part['limit']} s"]


def _test_row(test: dict[str, Any]) -> list[str]:
    deviation = f"{float(test['deviation']):.1e}" if test.get("deviation") and test["outcome"] != "skipped" else ""
    return [test["name"], test["outcome"], f"{test['seconds']:.1f} s", deviation, test["said"] or ""]


def _sentence(run: dict[str, Any]) -> str:
    if not run:
        return "it left nothing"
    said = f"{run['steps']:,} steps"
    if run["images_per_s"] is not None:
        said += f", {run['images_per_s']:,.0f} images/s"
    if run["memory_gb"] is not None:
        said += f", {run['memory_gb']:.2f} GB at its peak"
    if run["losses"] is not None:
        said += f", loss {run['losses'][0]:.4f} → {run['losses'][1]:.4f}"
    return said


def report(work: Path, output: Path, device: str) -> int:
    """Leave card.json, card.md and the throughput's files in the folder; how many parts failed."""
    from card_data import CIFAR10
    from results import write

    measured = sorted(work.glob("throughput_*"))
    for path in measured:
        (output / f"throughput{path.suffix}").write_bytes(path.read_bytes())
    known = parts(work / "parts")
    results = {
        **card(device),
        "device": device,
        "parts": known,
        "tests": tests(work / "tests.xml"),
        "training": training(work / "run"),
        "pictures": "CIFAR-10" if CIFAR10.is_file() else "drawn discs",
        "has_grid": known["grid"]["code"] == 0,
        "has_throughput": known["throughput"]["code"] == 0,
    }
    write("card", results, page(results), output)
    failed = [name for name, part in known.items() if part["code"]]
    print(f"\n{output}: " + (f"failed: {', '.join(failed)}" if failed else "all parts done"))
    return len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "folder", "report"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "check":
        if said := problem(options.device):
            print(f"card.sh: {said}", file=sys.stderr)
        return int(said is not None)
    if options.what == "folder":
        print(Path(__file__).parent / "results" / folder_name(card("cuda")["card"]))
        return 0
    return min(1, report(options.work, options.output, options.device))


if __name__ == "__main__":
    sys.exit(main())
