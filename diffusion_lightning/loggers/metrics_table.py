"""``metrics.csv``: one row per step, whole on disk whenever the process is killed."""

import csv
import errno
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from diffusion_lightning.disk import free_space

Row = dict[str, str]


class MetricsTable:
    """A CSV file of one row per step, to which values are added as they come.

    Values of the newest step join its row; a value given again replaces the former. A file that cannot be written is
    warned of once: its rows then wait in memory, and are written with a later one.

    Args:
        path: of the file. If it exists it is continued, without whatever is no whole row.
        resume_step: rows of this step and later ones are dropped from an existing file.

    Raises:
        OSError: if there is a file that cannot be read.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        self._names, rows = _parse(_content(path))
        self._rows = [row for row in rows if int(row["step"]) < resume_step]
        self._size = -1  # of the file as it should be; the first writing makes it anew
        self._start = 0  # where in the file the first of the rows goes; the others follow it
        self._is_written = not path.is_file()
        self._has_warned = False
        self.save()

    def add(self, metrics: Mapping[str, Any], step: int) -> None:
        """Put values into the row of a step."""
        if not self._rows or self._rows[-1]["step"] != str(step):
            self._rows.append({"step": str(step)})
        self._rows[-1].update(
            {name: str(value.item() if isinstance(value, Tensor) else value) for name, value in metrics.items()}
        )
        self._is_written = False

    def row(self, step: int) -> dict[str, float]:
        """The values of a step; none unless it is the newest."""
        if not self._rows or self._rows[-1]["step"] != str(step):
            return {}
        return {name: float(text) for name, text in self._rows[-1].items() if name != "step" and _is_number(text)}

    def save(self) -> None:
        """Write what is not on disk yet."""
        if self._is_written:
            return
        try:
            names = set().union(*self._rows) - set(self._names)
            if names or self._size < 0 or not self.path.is_file() or self.path.stat().st_size != self._size:
                self._write_anew(sorted({*self._names, *names, "step"}))
            else:
                self._write_rows()
        except OSError as error:
            self._warn(error)

    def _write_anew(self, names: list[str]) -> None:
        """With these columns, beside the file, which is then replaced in one move."""
        before = [] if self._size < 0 else _parse(_content(self.path)[: self._start])[1]
        part = self.path.with_name(self.path.name + ".part")
        rows = [_line([row.get(name, "") for name in names]) for row in before + self._rows]
        try:
            part.write_bytes(b"".join([_line(names), *rows]))
            part.replace(self.path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._names = names
        self._settle(self.path.stat().st_size)

    def _write_rows(self) -> None:
        """Over the newest row and on behind it."""
        text = b"".join(_line([row.get(name, "") for name in self._names]) for row in self._rows)
        with open(self.path, "r+b", buffering=0) as file:
            # empty lines first, which nobody reads: if the disk is full, the row that was there is still whole
            grown = self._start + len(text) - self._size
            file.seek(self._size)
            if grown > 0 and file.write(b"\n" * grown) != grown:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.seek(self._start)
            file.write(text.ljust(self._size - self._start, b"\n"))
            file.truncate(self._start + len(text))
        self._settle(self._start + len(text))

    def _settle(self, size: int) -> None:
        """All rows are on disk, and only the newest may still change."""
        self._size = size
        self._rows = self._rows[-1:]
        self._start = size - sum(len(_line([row.get(name, "") for name in self._names])) for row in self._rows)
        self._is_written = True

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{self.path} cannot be written ({error.strerror}; {free_space(self.path.parent)}): "
                "training goes on, and its rows wait in memory until it can"
            )


def read_rows(path: Path, start: int, stop: int) -> list[dict[str, float]]:
    """What the table at ``path`` has of the steps from ``start`` to before ``stop``, as numbers."""
    rows = [row for row in _parse(_content(path))[1] if start <= int(row["step"]) < stop]
    return [{name: int(text) if name == "step" else float(text) for name, text in row.items()} for row in rows]


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _parse(data: bytes) -> tuple[list[str], list[Row]]:
    """The columns and the rows, empty cells left out; rows of one step are joined, what is no whole row is dropped."""
    # what stands behind the last end of a line was not written to its end
    head, *lines = data.decode(errors="replace").replace("\0", "").split("\n")[:-1] or [""]
    names = next(csv.reader([head]), [])
    rows: list[Row] = []
    for line in lines:
        try:
            cells = next(csv.reader([line.rstrip("\r")]), [])
        except csv.Error:
            continue
        row = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
        if len(cells) != len(names) or not row.get("step", "").isdecimal() or not all(map(_is_number, row.values())):
            continue
        if rows and rows[-1]["step"] == row["step"]:
            rows[-1] |= row
        else:
            rows.append(row)
    return (names, rows) if "step" in names else ([], [])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
