"""What to type to make a run again, to go on with it, and to draw from it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from diffusion_lightning.report.run import Run


@dataclass(frozen=True)
class Command:
    """A command line and what it is for."""

    purpose: str
    line: str


def commands(run: Run) -> list[Command]:
    """Those that the run has the files for."""
    made = []
    config = run.folder / "config.yaml"
    if config.is_file():
        made.append(Command("Train it again, as a new version", _line("lightning", "fit", "--config", config)))
        if run.checkpoints:
            resume = _line("lightning", "fit", "--config", config, "--ckpt_path", "last", *_further(run))
            made.append(Command("Go on where it stands" + (", for as long again" if run.is_finished else ""), resume))
    last, best = run.checkpoint("last.ckpt"), [path for path in run.checkpoints if path.name.startswith("epoch=")]
    if last is not None:
        made.append(Command("Sample from its last checkpoint", _sample(last)))
    made += [Command(f"Sample from its best checkpoint, {path.stem}", _sample(path)) for path in best]
    return made


def _sample(checkpoint: Path) -> str:
    return _line("lightning", "sample", "--ckpt_path", checkpoint, "--num", 64, "--output", "samples.png")


def _further(run: Run) -> list[object]:
    """Options without which a finished run would have nothing left to do."""
    if not run.is_finished:
        return []
    if run.wanted("max_epochs"):
        return ["--trainer.max_epochs", 2 * run.epochs]
    return ["--trainer.max_steps", 2 * run.steps]


def _line(*words: object) -> str:
    return shlex.join(map(str, words))
