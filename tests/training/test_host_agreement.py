"""What one process knows is told to all of them, one call later."""

import os
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import distributed

from diffusion_lightning.training.agreement import Agreement

# in each process, call by call
SAID = [
    [(False, False), (False, False), (False, True), (False, False)],
    [(True, False), (False, False), (False, False), (False, False)],
]
HEARD = [[False, False], [True, False], [False, False], [False, True]]


def agree(rank: int, path: str, heard: Any) -> None:
    store = distributed.FileStore(path, 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    agreement = Agreement(SimpleNamespace(world_size=2, strategy=SimpleNamespace()))
    heard.put((rank, [agreement.any(*said) for said in SAID[rank]]))
    distributed.barrier()
    heard.close()
    heard.join_thread()
    os._exit(0)  # without taking gloo down, which may hang in torch 2.6


def test_all_hear_what_one_says(tmp_path: Path):
    context = get_context("fork")
    heard = context.Queue()
    processes = [context.Process(target=agree, args=(rank, str(tmp_path / "store"), heard)) for rank in range(2)]
    for process in processes:
        process.start()
    assert sorted(heard.get(timeout=60) for _ in processes) == [(0, HEARD), (1, HEARD)]
    for process in processes:
        process.join(60)


def test_a_process_alone_hears_itself_at_once():
    agreement = Agreement(SimpleNamespace(world_size=1))
    assert agreement.any(True, False) == [True, False]
