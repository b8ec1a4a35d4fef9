"""The version is known where the package has no metadata: in a source tree that is on the path but not installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffusion_lightning
from diffusion_lightning.commands.manual import version_line
from diffusion_lightning.version import installed_version

PACKAGE = Path(diffusion_lightning.__file__).parent

WITHOUT_METADATA = """
import sys
from importlib.metadata import MetadataPathFinder, PackageNotFoundError, version

find = MetadataPathFinder.find_distributions
MetadataPathFinder.find_distributions = lambda *context: (
    found for found in find(*context) if found.metadata["Name"] != "diffusion-lightning"
)
try:
    version("diffusion-lightning")
    sys.exit("its metadata was found")
except PackageNotFoundError:
    pass
from diffusion_lightning.__main__ import main

main()
"""


def test_the_version_is_the_packages_name_and_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", diffusion_lightning.__version__)
    assert version_line().startswith(f"diffusion_lightning {diffusion_lightning.__version__} (python ")


def test_a_package_that_is_not_installed_has_no_version():
    assert installed_version("no-such-package") is None
    assert installed_version("torch") == torch.__version__.partition("+")[0]


@pytest.fixture
def run_uninstalled(tmp_path):
    """Runs ``lightning`` from a copy of the package, in a process that finds no metadata of it."""
    tree = tmp_path / "tree"
    shutil.copytree(PACKAGE, tree / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_METADATA, *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_a_tree_that_is_not_installed_says_its_version(run_uninstalled):
    done = run_uninstalled("--version")
    assert done.stdout == version_line() + "\n", done.stderr


def test_a_tree_that_is_not_installed_trains_and_saves(run_uninstalled, tmp_path):
    config = PACKAGE.parent / "configs" / "points_ddpm.yaml"
    done = run_uninstalled(
        "fit", "--config", str(config), "--trainer.max_steps", "1", "--trainer.logger", "false",
        "--trainer.callbacks", "null", "--trainer.limit_val_batches", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "points_ddpm" / "version_0"
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["diffusion_lightning"]["version"] == diffusion_lightning.__version__
    noted = (folder / "environment.yaml").read_text()
    assert f"diffusion_lightning: {diffusion_lightning.__version__}\n" in noted
    assert f"  diffusion-lightning: {diffusion_lightning.__version__}\n" in noted
