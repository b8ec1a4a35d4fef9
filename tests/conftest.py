"""Settings of all tests: one thread each, no W&B account, no cache outside the test's own folder. And small models."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import preloaded
import pytest
import torch

if TYPE_CHECKING:  # the mathematics is tested without waiting for Lightning to load
    from lightning.pytorch import Trainer

    from diffusion_lightning import EmbeddedMNIST, ScoreModule


def pytest_configure() -> None:
    # small tensors: more threads only wait for each other, above all when tests run in parallel
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a shell that started the tests in the background has them ignore Ctrl-C, and with them all their processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
    preloaded.install()


LONG = ("reliability", "test_notebooks.py", "test_configs.py", "test_cli.py", "test_position.py")
"""Folders and files that take longest: they come first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return min((LONG.index(part) for part in item.path.parts if part in LONG), default=len(LONG))

    items.sort(key=place)


def pytest_collection_finish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # one of several processes, which end without taking anything down
        gc.freeze()  # thousands of tests and all that was imported: no collection needs to look at them again


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's keys or writes to the user's cache, or leaves a W&B run to those after it."""
    for name in filter(_is_unwanted, list(os.environ)):
        monkeypatch.delenv(name)
    for name, value in _settings(tmp_path_factory.mktemp("home")).items():
        monkeypatch.setenv(name, value)
    yield
    left = getattr(sys.modules.get("wandb"), "run", None)
    assert left is None, f"a test left the W&B run {left}: wandb.finish() before wandb.teardown()"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For commands run as processes of their own: as isolated, with one cache for all of them."""
    kept = {name: value for name, value in os.environ.items() if not _is_unwanted(name)}
    return {**kept, **_settings(tmp_path_factory.mktemp("home"))}


def _is_unwanted(variable: str) -> bool:
    """The user's W&B settings and keys, and what a test before this one left of Lightning's seed."""
    return variable.startswith("WANDB_") or variable == "PL_GLOBAL_SEED"


def _settings(home: Path) -> dict[str, str]:
    """Environment variables that send caches and settings to ``home``, where no key is."""
    return {
        "XDG_CACHE_HOME": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        "NETRC": str(home / "netrc"),
        **{f"WANDB_{name}_DIR": str(home / "wandb") for name in ("CONFIG", "CACHE", "DATA")},
    }


@pytest.fixture(scope="session")
def digits() -> Any:
    """The embedded digits, read once."""
    from diffusion_lightning import EmbeddedMNIST

    return EmbeddedMNIST().load_images()


@pytest.fixture
def make_data(digits: Any) -> Callable[..., "EmbeddedMNIST"]:
    """Makes a data module of the embedded digits, which are not read again."""
    from diffusion_lightning import EmbeddedMNIST

    def make(batch_size: int = 8, **kwargs: Any) -> EmbeddedMNIST:
        data = EmbeddedMNIST(batch_size=batch_size, **kwargs)
        data._images = digits
        return data

    return make


@pytest.fixture
def make_module() -> Callable[..., "ScoreModule"]:
    """Makes a ScoreModule with a network of a few thousand weights; arguments replace its parts."""
    from diffusion_lightning import Heun, KarrasPreconditioning, KarrasSDE, ScoreModule, UNet

    def make(**kwargs: Any) -> ScoreModule:
        torch.manual_seed(0)
        parts = {
            "network": UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4),
            "sde": KarrasSDE(),
            "parameterization": KarrasPreconditioning(),
            "sampler": Heun(steps=2),
        }
        return ScoreModule(**{**parts, **kwargs})

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., "Trainer"]:
    """Makes a quiet Trainer on the CPU: one epoch of three batches, two batches of validation, nothing logged."""
    from lightning.pytorch import Trainer

    def make(**kwargs: Any) -> Trainer:
        settings: dict[str, Any] = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "max_epochs": 1,
            "limit_train_batches": 3,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        settings |= dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return Trainer(**{**settings, **kwargs})

    return make
