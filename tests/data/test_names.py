"""Names as one array: what goes in comes out, in a worker too, and no name has an object of its own."""

import gc
import os
import pickle
import sys
from pathlib import Path

import pytest

from diffusion_lightning.data.names import AT_ONCE, Names, Paths

ODD = ["a/b.png", "", "ä/日本.png", "\ud800.png", os.fsdecode(b"\xff\xfe.png"), " \n", "a/b.png"]


@pytest.mark.parametrize("names", [[], ODD, [f"{i}" * (i % 7) for i in range(2 * AT_ONCE + 3)]])
def test_what_goes_in_comes_out(names):
    kept = Names(name for name in names)
    assert len(kept) == len(names)
    assert list(kept) == names
    assert [kept[i] for i in range(len(names))] == names
    assert [kept[-1 - i] for i in range(len(names))] == names[::-1]
    assert list(pickle.loads(pickle.dumps(kept))) == names
    for outside in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            kept[outside]


@pytest.mark.parametrize(
    "part", [slice(2, 5), slice(None, 3), slice(3, None), slice(-2, None), slice(5, 2), slice(9, 12)]
)
def test_a_slice_shares_the_memory(part):
    kept = Names(ODD)[part]
    assert isinstance(kept, Names)
    assert list(kept) == ODD[part]
    assert [kept[i] for i in range(len(kept))] == ODD[part]
    assert list(kept[1:]) == ODD[part][1:]
    whole = Names(ODD)
    assert whole[part]._text.data_ptr() == whole._text.data_ptr()


def test_a_step_is_refused():
    with pytest.raises(ValueError, match=r"step 2 of a slice: must be 1"):
        Names(ODD)[::2]


def test_a_name_has_no_object():
    gc.collect()
    before = sys.getallocatedblocks()
    kept = Names(f"{i:06}.png" for i in range(20_000))
    assert sys.getallocatedblocks() - before < 1000
    assert kept._text.nbytes + kept._ends.nbytes == 20_000 * (len("000000.png") + 8) + 8


def test_paths_are_those_of_the_folder():
    paths = Paths(Path("root"), Names(["a/b.png", "c.png"]))
    assert list(paths) == [Path("root/a/b.png"), Path("root/c.png")] == [paths[0], paths[-1]]
    assert list(paths[1:]) == [Path("root/c.png")]
    assert len(paths) == 2
