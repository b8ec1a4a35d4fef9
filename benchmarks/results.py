"""Where benchmarks leave their tables: ``benchmarks/results/<name>.{json,md}``, with the machine and the versions."""

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from diffusion_lightning.training.bf16 import has_bf16_units

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("torch", "lightning", "diffusers", "denoising-diffusion-pytorch", "azula", "diffusion-lightning")


def machine() -> str:
    """The processor or card, the threads, the system and the versions, in one line."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        bf16 = "with" if has_bf16_units("cpu") else "without"
        hardware = f"{os.cpu_count()} CPU cores ({_cpu()}, {bf16} bf16 units), {torch.get_num_threads()} threads"
    return f"{hardware}; {platform.system()}, Python {platform.python_version()}; {', '.join(_versions())}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What an earlier run of the benchmark has left there; empty if none has."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write(name: str, data: Mapping[str, Any], text: str, folder: Path = RESULTS) -> None:
    """Leave the figures and the page that shows them in a folder; the page is printed too."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    print(text)
