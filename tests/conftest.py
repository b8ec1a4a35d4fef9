"""Settings of all tests: one thread each, no W&B account, no cache outside the test's own folder."""

import pytest
import torch


def pytest_configure() -> None:
    # small tensors: more threads only wait for each other, above all when tests run in parallel
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads the user's keys or writes to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
