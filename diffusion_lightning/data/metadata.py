"""What is known of each picture of a folder besides its pixels: the columns of its ``metadata.csv`` or ``.jsonl``.

By the convention of Hugging Face's ``imagefolder``: the column ``file_name`` tells which picture a row is of, relative
to the folder of the metadata and with forward slashes; the others are what there is to know. A million rows are read
one by one, and what stays of them are two arrays.
"""

import csv
import json
import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"

LARGEST = torch.finfo(torch.float32).max
"""Of numbers, which are kept as float32."""


@dataclass(frozen=True)
class Metadata:
    """What the columns that were asked for say of N pictures.

    Attributes:
        files: that were read, relative to the pictures' folder.
        numbers: the D columns of numbers, in the order in which they were asked for.
        vectors: these numbers, float32 (N, D); None if D is 0.
        words: the column of words, if there is one.
        class_names: its different words, sorted; empty without one.
        labels: of each picture the number of its word, int64 (N,); None without one.
    """

    files: list[str]
    numbers: list[str]
    vectors: Tensor | None
    words: str | None
    class_names: list[str]
    labels: Tensor | None

    def summary(self) -> str:
        """Which conditions were found, and where."""
        told = [f"vector: {', '.join(self.numbers)}"] if self.numbers else []
        told += [f"classes: {self.words}"] if self.words is not None else []
        return f"conditions of {', '.join(self.files)}: {'; '.join(told)}"


def read_metadata(
    root: str, path: Path, folders: Sequence[str], names: Sequence[str], unread: Sequence[str], columns: Sequence[str]
) -> Metadata:
    """Read the columns of all pictures of a folder.

    Args:
        root: the folder, as it is called in errors.
        path: of it.
        folders: that may hold metadata, relative to it, each ``""`` or ending in a slash.
        names: of the pictures, relative to the folder and with forward slashes.
        unread: folders whose pictures are left out; rows of them are, too.
        columns: the names of those that are wanted.

    Raises:
        FileNotFoundError: if there is no metadata, or it has rows of pictures that are not there.
        ValueError: if a picture has no row or several, or a file or a column is not such as it should be.
    """
    files = [folder + file for folder in folders for file in FILES if (path / folder / file).is_file()]
    if not files:
        raise FileNotFoundError(
            f"data.root={root!r} has no {' or '.join(FILES)}, which data.condition.columns={list(columns)} need; give "
            f"one with the columns {FILE_NAME}, {', '.join(columns)}, or data.condition=null"
        )
    place = {name: i for i, name in enumerate(names)}
    table = _Table(columns, len(place))
    missing, first = 0, ""
    for file in files:
        folder, where = posixpath.dirname(file), f"{path / file}"
        for row, (name, cells) in _rows(path / file, where, columns):
            picture = posixpath.normpath(posixpath.join(folder, name))
            i = place.get(picture)
            if i is not None:
                table.fill(i, cells, f"{where}: row {row}", name)
            elif not picture.startswith(tuple(f"{other}/" for other in unread)):
                missing, first = missing + 1, first or f"row {row} of {where}, {name!r}"
    if missing:
        raise FileNotFoundError(
            f"data.root={root!r} has metadata of {missing} picture{'s' * (missing > 1)} not found there, the first is "
            f"{first}: give {FILE_NAME} relative to the folder of the metadata, or remove the row"
        )
    if without := table.has_row.count(0):
        raise ValueError(
            f"data.root={root!r} has {without} picture{'s' * (without > 1)} of which {', '.join(files)} "
            f"{'has' if len(files) == 1 else 'have'} no row, the first is {names[table.has_row.index(0)]}: add "
            f"{'a row' if without == 1 else 'rows'}, or remove the picture{'s' * (without > 1)}"
        )
    return table.metadata(files)


class _Table:
    """The cells of the columns as they are read: numbers, and words as the numbers of their first occurrences."""

    def __init__(self, columns: Sequence[str], rows: int) -> None:
        self.columns = list(columns)
        self.has_row = bytearray(rows)
        self.values = [array("d", bytes(8 * rows)) for _ in columns]
        self.words: list[dict[str, int]] = [{} for _ in columns]
        self.first: list[tuple[str, str, bool] | None] = [None] * len(self.columns)  # where, what, whether a number

    def fill(self, i: int, cells: Sequence[str], where: str, name: str) -> None:
        """Put in a row of cells, that of the i-th picture."""
        if self.has_row[i]:
            raise ValueError(f"{where}: {name!r} has a row already; keep one of them")
        self.has_row[i] = 1
        for column, cell in enumerate(cells):
            if not (text := cell.strip()):
                raise ValueError(f"{where} has nothing in column {self.columns[column]!r}; give a value")
            number = _number(text)
            self._check_kind(column, text, number is not None, where)
            if number is None:
                number = self.words[column].setdefault(text, len(self.words[column]))
            elif not abs(number) <= LARGEST:  # nor NaN
                raise ValueError(f"{where}, column {self.columns[column]!r}: {text!r} is no finite float32")
            self.values[column][i] = number

    def _check_kind(self, column: int, text: str, is_number: bool, where: str) -> None:
        first = self.first[column]
        if first is None:
            self.first[column] = where, text, is_number
            if not is_number and (other := self._other_words(column)) is not None:
                raise ValueError(
                    f"data.condition.columns: {self.columns[other]!r} and {self.columns[column]!r} are of words "
                    f"({where}: {text!r}): one can be the classes; leave one out, or make it numbers"
                )
        elif first[2] != is_number:
            word, number = ((where, text), first) if first[2] else (first, (where, text))
            raise ValueError(
                f"{word[0]}, column {self.columns[column]!r}: {word[1]!r} is no number, but {number[1]!r} of "
                f"{number[0]} is one: a column is of numbers or of words"
            )

    def _other_words(self, column: int) -> int | None:
        return next((i for i, first in enumerate(self.first) if i != column and first and not first[2]), None)

    def metadata(self, files: list[str]) -> Metadata:
        """What has been put in."""
        of_words = [i for i, first in enumerate(self.first) if first is not None and not first[2]]
        of_numbers = [i for i in range(len(self.columns)) if i not in of_words]
        values = [torch.frombuffer(column, dtype=torch.float64) for column in self.values]
        vectors = torch.stack([values[i].float() for i in of_numbers], dim=1) if of_numbers else None
        numbers = [self.columns[i] for i in of_numbers]
        if not of_words:
            return Metadata(files, numbers, vectors, None, [], None)
        found = self.words[of_words[0]]
        class_names = sorted(found)
        label = {word: i for i, word in enumerate(class_names)}
        labels = torch.tensor([label[word] for word in found])[values[of_words[0]].long()]
        return Metadata(files, numbers, vectors, self.columns[of_words[0]], class_names, labels)


def _rows(path: Path, where: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    """Of each row its number in the file, from 1 on, the picture that it is of, and the cells of the columns."""
    read = _csv_rows if path.suffix == ".csv" else _json_rows
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from read(file, where, [FILE_NAME, *columns])
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8; save it as such") from error


def _csv_rows(file: Any, where: str, columns: list[str]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    rows = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        places = [_place(name, header, where) for name in columns]
        for number, row in enumerate(rows, start=2):  # as a spreadsheet counts them
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{where}: row {number} has {len(row)} cells, but there are {len(header)} columns")
            name, *cells = (row[place] for place in places)
            yield number, (name, cells)
    except csv.Error as error:
        raise ValueError(f"{where}: near line {rows.line_num}: no CSV, {error}") from error


def _json_rows(file: Any, where: str, columns: list[str]) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: row {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: row {number} is no JSON object; give one with {', '.join(columns)}")
        for column in columns:
            _place(column, list(row), f"{where}: row {number}")
        name, *cells = (_text(row[column], f"{where}: row {number}, column {column!r}") for column in columns)
        yield number, (name, cells)


def _place(name: str, header: list[str], where: str) -> int:
    """Where a column is."""
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise ValueError(f"{where} has {header.count(name)} columns {name!r}; keep one of them")
    there = f"has the columns {', '.join(header)}" if header else "is empty"
    if name == FILE_NAME:
        raise ValueError(f"{where} has no column {FILE_NAME}, which tells the picture that a row is of; it {there}")
    raise ValueError(f"data.condition.columns: {where} has no column {name!r}; it {there}")


def _text(value: Any, where: str) -> str:
    """A value of JSON as it would stand in a CSV; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, dict | list):
        raise ValueError(f"{where}: {json.dumps(value)} is neither a number nor a word")
    return value if isinstance(value, str) else json.dumps(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
