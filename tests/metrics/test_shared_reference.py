"""FID's reference of several real processes: the parts, their sum to the last digit, and what a killed run leaves."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_lightning.data import loader
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.metrics import kept
from diffusion_lightning.metrics.fid import SUMS, ReferenceFID

COUNT = 3700
PARTS = [1000, 1000, 1000, 700]
PATIENCE = 120  # seconds until a test that hangs fails; nothing is to be so slow


class Patches(nn.Module):
    """Nine means over patches; their sums in float64 depend on the order in which they are added up."""

    num_features = 9

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 2).flatten(1)


class Noise(ImageDataModule):
    """Images of noise, read by a worker."""

    shape = (1, 6, 6)
    num_classes = 1

    def load_images(self) -> tuple[TensorImages, TensorImages]:
        images = torch.randint(256, (COUNT, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        images = TensorImages(images, torch.zeros(COUNT, dtype=torch.int64))
        return images, images


class Reading:
    """Reads parts and writes down which; the process ends, as by ``kill -9``, in the second batch of a chosen one."""

    def __init__(self, folder: Path, deadly: int | None = None) -> None:
        self.folder, self.deadly, self.data = folder, deadly, Noise(num_workers=1)
        folder.mkdir(exist_ok=True)

    def __call__(self, parts: Sequence[range]) -> Iterator[Tensor]:
        batches = self.data.fid_reference(parts)
        for part in parts:
            for first in part[::500]:
                batch = next(batches)
                if first == part.start + 500:
                    if self.deadly == part.start:
                        os.kill(os.getpid(), signal.SIGKILL)
                    (self.folder / f"read-{part.start}-by-{os.environ['PLACE']}").touch()
                yield batch

    def parts(self) -> dict[int, int]:
        """Which rank has read which part; and forgets it."""
        found = {}
        for file in self.folder.glob("read-*"):
            _, first, _, rank = file.name.split("-")
            found[int(first) // 1000] = int(rank)
            file.unlink()
        return found


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PART", 1000)
    monkeypatch.setenv("PLACE", "0")


@pytest.fixture
def share(tmp_path: Path) -> Callable[..., list[int | None]]:
    """Runs so many processes, each with a cache of its own if asked, and returns how they ended."""

    def process(rank: int, size: int, read: Reading, caches: list[Path], meeting: Path) -> None:
        os.environ["PLACE"] = str(rank)
        loader._workers.clear()  # those of the process that this one was forked from
        distributed.init_process_group(
            "gloo", f"file://{meeting}", timedelta(seconds=PATIENCE), rank=rank, world_size=size
        )
        fid = ReferenceFID(Patches(), caches[rank])
        fid.share_reference(COUNT, read, "data", size, rank)
        torch.save([getattr(fid.metric, name) for name in SUMS], tmp_path / f"rank{rank}.pt")
        fid.update(torch.full((2, 1, 6, 6), rank, dtype=torch.uint8))
        (tmp_path / f"rank{rank}.txt").write_text(repr(fid.compute()))
        # and no destroy_process_group(): PyTorch 2.6's gloo may wait for ever in it

    def run(read: Reading, caches: list[Path]) -> list[int | None]:
        fork, size = multiprocessing.get_context("fork"), len(caches)
        meeting = tmp_path / "meeting"
        meeting.unlink(missing_ok=True)
        started = [fork.Process(target=process, args=(rank, size, read, caches, meeting)) for rank in range(size)]
        for each in started:
            each.start()
        for each in started:
            each.join(PATIENCE)
            each.kill()
            each.join()
        return [each.exitcode for each in started]

    return run


def sums(folder: Path) -> list[Tensor]:
    """The statistics that are left in a cache, and nothing beside them."""
    (file,) = (folder / "fid").iterdir()
    found = load_file(file)
    return [found[name].clone() for name in SUMS]  # and no view of the file


def of_one_process(folder: Path) -> list[Tensor]:
    read = Reading(folder)
    read.data.num_workers = 0
    ReferenceFID(Patches(), folder).share_reference(COUNT, read, "data")
    return sums(folder)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_several_parts_are_the_sum_of_all_images(tmp_path: Path) -> None:
    features = Patches()(Noise().train_images.images).double()
    total, products, count = of_one_process(tmp_path)
    torch.testing.assert_close(total, features.sum(0))
    torch.testing.assert_close(products, features.T @ features)
    assert count == COUNT


def test_one_part_is_what_torchmetrics_computes_to_the_last_digit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(kept, "PART", COUNT)
    metric = FrechetInceptionDistance(Patches())
    for batch in Noise().fid_reference():
        metric.update(batch, real=True)
    expected = [getattr(metric, name) for name in SUMS]
    assert equal(of_one_process(tmp_path / "parts"), expected)
    ReferenceFID(Patches(), tmp_path / "whole").set_reference(Noise().fid_reference(), "data")
    assert equal(sums(tmp_path / "whole"), expected)
    names = [file.name for folder in ("parts", "whole") for file in (tmp_path / folder / "fid").iterdir()]
    assert names[0] == names[1]  # what one has kept, the other takes


@pytest.mark.parametrize(("size", "shared"), [(2, True), (3, False)])
def test_processes_share_the_parts_and_their_sum_is_that_of_one_to_the_last_digit(share, tmp_path, size, shared):
    expected = of_one_process(tmp_path / "one")
    read = Reading(tmp_path)
    caches = [tmp_path / ("cache" if shared else f"cache{rank}") for rank in range(size)]
    assert share(read, caches) == [0] * size
    assert read.parts() == {part: part % size for part in range(len(PARTS))}
    assert equal(sums(caches[0]), expected)
    if not shared:
        assert not any(list((cache / "fid").iterdir()) for cache in caches[1:])
    first, *others = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(size))
    assert equal(first, expected)
    assert not any(tensor.any() for other in others for tensor in other)  # torchmetrics adds them up
    assert len({(tmp_path / f"rank{rank}.txt").read_text() for rank in range(size)}) == 1

    assert share(read, caches) == [0] * size  # all is there: nothing is read again
    assert read.parts() == {}
    assert equal(torch.load(tmp_path / "rank0.pt", weights_only=True), expected)


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "each its own"])
def test_what_a_killed_run_has_finished_is_not_computed_again(share, tmp_path, shared):
    expected = of_one_process(tmp_path / "one")
    read = Reading(tmp_path, deadly=3000)
    read.data.num_workers = 0  # an orphaned worker would hold the connection for some seconds
    caches = [tmp_path / ("cache" if shared else f"cache{rank}") for rank in range(2)]
    killed, other = reversed(share(read, caches))
    assert (killed, other) == (-signal.SIGKILL, 1)
    assert read.parts() == {0: 0, 1: 1, 2: 0}
    read.deadly = None
    assert share(read, caches) == [0, 0]
    assert read.parts() == {3: 1}
    assert equal(sums(caches[0]), expected)


def test_a_part_that_is_damaged_or_foreign_is_computed_anew(tmp_path: Path) -> None:
    expected = of_one_process(tmp_path / "one")
    read, cache = Reading(tmp_path, deadly=None), tmp_path / "cache"

    class Interrupted(Exception):
        pass

    def until_the_last(parts: Sequence[range]) -> Iterator[Tensor]:
        yield from read(parts[:3])
        raise Interrupted

    with pytest.raises(Interrupted):
        ReferenceFID(Patches(), cache).share_reference(COUNT, until_the_last, "data")
    first, second, third = sorted((cache / "fid").iterdir())
    first.write_bytes(first.read_bytes()[:-8])
    second.write_bytes((next((tmp_path / "one" / "fid").iterdir())).read_bytes())  # of more images
    assert "-part-02-of-04" in third.name
    read.parts()
    ReferenceFID(Patches(), cache).share_reference(COUNT, read, "data")
    assert sorted(read.parts()) == [0, 1, 3]
    assert equal(sums(cache), expected)


def test_parts_that_another_run_writes_or_removes_meanwhile_change_nothing(tmp_path: Path) -> None:
    expected = of_one_process(tmp_path / "one")
    done, cache = tmp_path / "done", tmp_path / "cache"

    class Interrupted(Exception):
        pass

    def all_but_the_last(parts: Sequence[range]) -> Iterator[Tensor]:
        yield from Reading(done)(parts[:3])
        raise Interrupted

    with pytest.raises(Interrupted):
        ReferenceFID(Patches(), done).share_reference(COUNT, all_but_the_last, "data")
    first, second, third = sorted((done / "fid").glob("*.safetensors"))
    (cache / "fid").mkdir(parents=True)
    shutil.copy(first, cache / "fid")

    def meanwhile(parts: Sequence[range]) -> Iterator[Tensor]:
        if len(parts) == 3:
            (cache / "fid" / first.name).unlink()  # after it was seen
            for file in (second, third):
                shutil.copy(file, cache / "fid")
        yield from Reading(tmp_path)(parts)

    # the first part is asked for before any image is read
    found = ReferenceFID(Patches(), cache)
    found.share_reference(COUNT, lambda parts: list(meanwhile(parts)), "data")
    assert Reading(tmp_path).parts() == {0: 0, 1: 0, 2: 0, 3: 0}
    assert equal(sums(cache), expected)


def test_damaged_statistics_are_computed_anew(tmp_path: Path) -> None:
    expected = of_one_process(tmp_path)
    (file,) = (tmp_path / "fid").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    assert equal(of_one_process(tmp_path), expected)


def test_parts_left_beside_the_whole_are_removed(tmp_path: Path) -> None:
    expected = of_one_process(tmp_path)
    (file,) = (tmp_path / "fid").iterdir()
    kept.part_path(file, 1, 4).write_text("of a process that was killed in the last moment")
    assert equal(of_one_process(tmp_path), expected)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    expected = of_one_process(tmp_path / "one")
    (tmp_path / "file").write_text("in the way")
    fid = ReferenceFID(Patches(), tmp_path / "file" / "cache")
    fid.share_reference(COUNT, Reading(tmp_path), "data")
    assert equal([getattr(fid.metric, name) for name in SUMS], expected)


def test_features_that_learn_leave_no_graph(tmp_path: Path) -> None:
    class Learning(Patches):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            return self.weight * super().forward(images)

    fid = ReferenceFID(Learning(), tmp_path)
    fid.share_reference(COUNT, Reading(tmp_path), "data")
    fid.update(torch.zeros(2, 1, 6, 6, dtype=torch.uint8))
    for name in (*SUMS, "fake_features_cov_sum"):
        assert not getattr(fid.metric, name).requires_grad
