"""Names of a million files as one array of bytes, without a Python object for each.

A forked worker shares the memory of the process that it comes from until one of the two writes to it, and Python writes
to an object whenever it is looked at. An array is one object, however many names it holds.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import torch

AT_ONCE = 4096
"""Names whose places are looked up at once by an iteration."""


class Names(Sequence[str]):
    """Names in their order; a slice, of step 1, shares their memory.

    Args:
        names: of which each is seen once, and none kept.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogatepass")  # names that are no text have surrogates
            ends.append(len(text))
        # copies, for what grew has room for more
        self._text = torch.frombuffer(text, dtype=torch.uint8).clone() if text else torch.empty(0, dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64).clone()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Names": ...

    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"step {step} of a slice: must be 1")
            part = Names()
            part._text, part._ends = self._text, self._ends[first : max(first, last) + 1]
            return part
        place = range(len(self))[index]
        start, end = self._ends[place : place + 2].tolist()
        return self._text[start:end].numpy().tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text = self._text.numpy().data
        for first in range(0, len(self), AT_ONCE):
            for start, end in pairwise(self._ends[first : first + AT_ONCE + 1].tolist()):
                yield str(text[start:end], "utf-8", "surrogatepass")


class Paths(Sequence[Path]):
    """Files of a folder, each of which becomes a `Path` when it is asked for.

    Args:
        folder: that they are in.
        names: relative to it.
    """

    def __init__(self, folder: Path, names: Names) -> None:
        self.folder = folder
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> "Paths": ...

    def __getitem__(self, index: int | slice) -> "Path | Paths":
        if isinstance(index, slice):
            return Paths(self.folder, self.names[index])
        return self.folder / self.names[index]

    def __iter__(self) -> Iterator[Path]:
        return map(self.folder.joinpath, self.names)
