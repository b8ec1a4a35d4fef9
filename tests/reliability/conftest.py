"""Makes runs of the real command that may be hurt."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hurt_runs
import pytest
from hurt_runs import Command


@pytest.fixture(scope="session")
def make_command(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Callable[..., Command]]:
    """Makes a :class:`Command`; two processes with ``processes=2``. No process outlives the tests."""
    made = []

    def make(*options: str, processes: int = 1, **variables: str) -> Command:
        folder = tmp_path_factory.mktemp("hurt") / "run"
        made.append(hurt_runs.make_command(folder, environment, *options, processes=processes, **variables))
        return made[-1]

    yield make
    for process in [process for command in made for process in command.started]:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def uninterrupted(make_command: Callable[..., Command]) -> Callable[..., Command]:
    """A run that nothing interrupts, made once for each set of options."""
    made: dict[Any, Command] = {}

    def make(*options: str, processes: int = 1) -> Command:
        key = (options, processes)
        if key not in made:
            made[key] = make_command(*options, processes=processes)
            made[key]()
        return made[key]

    return make
