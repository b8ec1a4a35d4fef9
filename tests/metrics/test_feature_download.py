"""The Inception network's weights are downloaded once, by one of several real processes; from a server that is here."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics.image.fid  # noqa: F401 — once, and not in each process

from diffusion_lightning.metrics.features import InceptionFeatures


class Weights:
    """A server of weights that are no network's, and how often they were asked for."""

    def __init__(self, folder: Path) -> None:
        self.requests = 0
        self.arrived = multiprocessing.get_context("fork").Event()
        torch.save({}, folder / "weights.pth")
        weights = (folder / "weights.pth").read_bytes()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                outer.arrived.set()
                time.sleep(0.3)  # in which another process that does not wait would ask too
                self.send_response(200)
                self.end_headers()
                self.wfile.write(weights)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights.pth"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weights]:
    """From which the Inception network's are downloaded to ``tmp_path``, but not put into it."""
    made = Weights(tmp_path)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", made.url)
    monkeypatch.setattr("torch.nn.Module.load_state_dict", lambda *_: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    yield made
    made.server.shutdown()
    made.server.server_close()


def start(number: int) -> list[Any]:
    """So many processes that make the network."""
    processes = [multiprocessing.get_context("fork").Process(target=InceptionFeatures) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def ends(processes: list[Any]) -> list[int | None]:
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def test_one_of_several_processes_downloads_and_the_others_wait_for_it(weights: Weights) -> None:
    assert ends(start(3)) == [0, 0, 0]
    assert weights.requests == 1
    assert ends(start(1)) == [0]
    assert weights.requests == 1


def test_a_process_that_is_killed_keeps_none_waiting(weights: Weights) -> None:
    first = start(1)
    assert weights.arrived.wait(120)
    second = start(1)
    first[0].kill()
    assert ends(first + second) == [-signal.SIGKILL, 0]
    assert weights.requests == 2


def test_each_says_that_it_has_failed(weights: Weights, capfd: pytest.CaptureFixture[str]) -> None:
    weights.server.shutdown()
    weights.server.server_close()
    assert ends(start(2)) == [1, 1]
    assert capfd.readouterr().err.count("OSError: the Inception weights could not be downloaded (") == 2


def test_weights_that_are_there_need_no_lock(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    InceptionFeatures()
    (lock,) = (file for file in (tmp_path / "hub" / "checkpoints").iterdir() if file.suffix != ".pth")
    lock.unlink()
    lock.mkdir()  # where it cannot be taken
    InceptionFeatures()
    assert weights.requests == 1
