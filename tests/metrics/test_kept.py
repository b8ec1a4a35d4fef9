from pathlib import Path

import pytest
import torch

from diffusion_lightning.metrics.kept import forget_parts, part_path, parts_of, store, stored


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (10_000, [10_000]),
        (10_001, [10_000, 1]),
        (50_000, [10_000] * 5),
        (640_000, [10_000] * 64),
        (640_001, [10_500] * 60 + [10_001]),
        (1_281_167, [20_500] * 62 + [10_167]),
    ],
)
def test_parts_are_whole_batches_of_all_images(count: int, sizes: list[int]) -> None:
    parts = parts_of(count)
    assert [len(part) for part in parts] == sizes
    assert [number for part in parts for number in (part.start, part.stop)][1:-1:2] == [
        part.start for part in parts[1:]
    ]
    assert all(part.start % 500 == 0 for part in parts)
    assert sum(sizes) == count


def test_what_is_stored_is_read_and_nothing_else(tmp_path: Path) -> None:
    path, tensors = tmp_path / "folder" / "a.safetensors", {"a": torch.arange(3.0), "b": torch.eye(2).T}
    assert stored(path, "a") is None
    assert store(path, tensors)
    assert list(path.parent.iterdir()) == [path]
    found = stored(path, "a", "b")
    assert found is not None
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert stored(path, "a", "c") is None
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:4], bytes(len(whole)), b"no such file" * 10):
        path.write_bytes(damaged)
        assert stored(path, "a") is None
    assert stored(None, "a") is None


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert not store(tmp_path / "file" / "a.safetensors", {"a": torch.zeros(1)})
    assert not store(None, {"a": torch.zeros(1)})


def test_parts_are_forgotten_and_their_drafts_and_nothing_else(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].safetensors", tmp_path / "a1.safetensors"
    kept = [path, other, part_path(other, 0, 3)]
    for each in (*kept, part_path(path, 0, 3), part_path(path, 2, 3), part_path(path, 1, 3).with_suffix(".77.part")):
        each.write_text("")
    forget_parts(path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    forget_parts(tmp_path / "nowhere" / "a.safetensors")
