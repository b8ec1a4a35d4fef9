"""A run of seconds by the command line, and what its failure says: for tests of several folders."""

import hashlib
from pathlib import Path

import pytest

from diffusion_lightning import cli

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
DEBUG = str(CONFIGS / "overlays" / "debug.yaml")

TINY = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 1
  limit_train_batches: 3
  limit_val_batches: 1
  log_every_n_steps: 1
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 5}
    - class_path: diffusion_lightning.FIDCallback
      init_args: {num_samples: 12}
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 16}}
"""
# beyond that, for commands that are run in this process
QUIET = """
trainer:
  logger: null
  callbacks: null
  enable_progress_bar: false
  enable_model_summary: false
"""


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content's hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail; returns the one line it says."""
    with pytest.raises(SystemExit) as done:
        cli.main(list(args))
    assert done.value.code not in (0, None)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("lightning: error: ")]
    assert len(lines) == 1, captured.err
    assert captured.err.rstrip().splitlines()[-1] == lines[0]
    assert "Traceback" not in captured.err + captured.out
    assert "<class" not in lines[0]
    return lines[0].removeprefix("lightning: error: ")
