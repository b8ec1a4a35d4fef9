"""How long commands take to wake up: their processor time over that of ``import torch``.

    python benchmarks/start_up.py

Every command runs in a process of its own, in turns with the one that it is compared with, so that a change of the
machine's speed meets both alike; user and system time of the process and its children are added up. The likes of
``sample`` are compared with ``import torch``, those of ``fit`` with what Lightning itself takes for its own command:
the import of its CLI, and a parser of its trainer; a fit of one step with the same by plain ``LightningCLI``, with the
same module, data and options. The drawing is what ``sample`` itself says that it took.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import machine, table, write

COMMAND = [sys.executable, "-m", "diffusion_lightning"]
TORCH = "import torch"
LIGHTNING = "import lightning.pytorch.cli"
PLAIN_CLI = """
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from diffusion_lightning import ScoreModule
from diffusion_lightning.training.precision import Trainer

settings = {"auto_configure_optimizers": False, "load_from_checkpoint_support": False, "save_config_callback": None}
LightningCLI(ScoreModule, LightningDataModule, subclass_mode_data=True, trainer_class=Trainer, **settings)
"""
ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "tests" / "data" / "checkpoints" / "version_0.2.0.ckpt"
ONE_STEP = [
    *("fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.max_steps", "1"),
    *("--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0", "--trainer.precision", "32-true"),
    *("--trainer.callbacks", "null", "--trainer.logger", "false", "--trainer.enable_checkpointing", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]

CASES: dict[str, tuple[list[str], str, float]] = {
    "lightning --help": (["--help"], TORCH, 0.15),
    "lightning smaple": (["smaple"], TORCH, 0.15),
    "lightning completion bash": (["completion", "bash"], TORCH, 0.15),
    "lightning sample --help": (["sample", "--help"], TORCH, 1.3),
    "lightning export --help": (["export", "--help"], TORCH, 1.3),
    "lightning sample, 64 by 8 steps": (
        ["sample", "--ckpt_path", str(CHECKPOINT), "--sampler", "DPMSolverPlusPlus", "--sampler.steps", "8"],
        TORCH,
        2.0,
    ),
    "lightning fit --help": (["fit", "--help"], LIGHTNING, 1.15),
    "lightning fit, one step": (ONE_STEP, PLAIN_CLI, 1.15),
}
"""Each with its arguments, what it is compared with, and the most that it may take of that."""


def processor_seconds(command: list[str], folder: str) -> tuple[float, str]:
    """The user and system time of a process and its children, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def drawing_seconds(said: str) -> float:
    """What a command says that its drawing took; 0 of a command that drew nothing."""
    found = re.search(r"samples in ([\d.]+) s", said)
    return float(found[1]) if found else 0.0


def measure(turns: int) -> list[dict[str, Any]]:
    """Of every case the seconds and the ratios of all turns, without the drawing."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (arguments, other, goal) in CASES.items():
            seconds, ratios = [], []
            for _ in range(turns):
                base, _ = processor_seconds([sys.executable, "-c", other, *arguments], folder)
                spent, said = processor_seconds([*COMMAND, *arguments], folder)
                seconds.append(spent - drawing_seconds(said))
                ratios.append(seconds[-1] / base)
            rows.append({"command": name, "over": other, "goal": goal, "seconds": seconds, "ratios": ratios})
            print(f"{name}: {statistics.median(ratios):.2f}", file=sys.stderr)
    return rows


def page(results: dict[str, Any]) -> str:
    """The table of a run."""
    rows = [
        [
            f"`{row['command']}`",
            f"{statistics.median(row['seconds']):.2f} s",
            "plain `LightningCLI`" if row["over"] == PLAIN_CLI else f"`{row['over']}`",
            f"{statistics.median(row['ratios']):.2f} ({min(row['ratios']):.2f}–{max(row['ratios']):.2f})",
            f"≤ {row['goal']:g}",
        ]
        for row in results["rows"]
    ]
    columns = ["command", "processor time", "compared with", "ratio (all turns)", "goal"]
    return f"# Start-up\n\n{results['turns']} turns; {results['machine']}\n\n{table(columns, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    results = {"turns": options.turns, "machine": machine(), "rows": measure(options.turns)}
    write("start_up", results, page(results))


if __name__ == "__main__":
    main()
