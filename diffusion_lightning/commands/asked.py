"""What samples are asked for on a command line: classes by name or number, and conditions from a file."""

import csv
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.conditions import CONDITIONS, taken_by
from diffusion_lightning.training.trained import TrainedModel

LABEL = "label"
"""The column of a CSV that has classes."""

NAMED = 10
"""Of many names, how many are told."""

DEFAULT = 64
"""Samples where nothing says how many."""


def asked_for(
    labels: Sequence[int | str] | None, file: str | None, num: int | None, model: TrainedModel
) -> tuple[int, dict[str, Tensor]]:
    """How many samples are drawn, and what each is asked for, by name and one row a sample; nothing of the default.

    Args:
        labels: classes, by their names or numbers, in turn.
        file: an ``.npz`` of arrays by the names of conditions, or a ``.csv``: one row for each condition.
        num: samples of each row of the file, 1 if left out; without a file, of all, 64 if left out.
        model: that draws them.

    Raises:
        UsageError: for what is no class or no condition of the model.
        OSError: if the file cannot be read.
    """
    asked: dict[str, Tensor] = {}
    if file is not None:
        rows = _read(Path(file), model)
        each = 1 if num is None else num
        asked = {name: value.repeat_interleave(each, 0) for name, value in rows.items()}
    elif set(taken_by(model.network)) - {"labels"} and model.condition_dropout == 0:
        told = ", ".join(taken_by(model.network))
        raise UsageError(
            f"condition: the model is told {told}, and was never without: give --condition file.npz, or .csv"
        )
    total = len(next(iter(asked.values()))) if asked else DEFAULT if num is None else num
    if labels is not None:
        given = torch.tensor(class_numbers(labels, model))
        asked["labels"] = given.repeat(-(-total // len(given)))[:total]
    return total, asked


def class_numbers(labels: Sequence[int | str], model: TrainedModel) -> list[int]:
    """The numbers of classes that are named, or numbered where there is no class of such a name.

    Raises:
        UsageError: if a label is no class, with the nearest name.
    """
    classes, names = model.num_classes, model.class_names or []
    if not classes:
        raise UsageError(f"labels={list(labels)}: the checkpoint's network has no classes: leave it out")
    numbers = {name: number for number, name in enumerate(names[:classes])}
    found = []
    for label in labels:
        number = numbers.get(str(label), int(label) if str(label).isdecimal() else label)
        if not isinstance(number, int) or not 0 <= number < classes:
            near = difflib.get_close_matches(str(label), names, n=1)
            hint = f"did you mean {near[0]}?" if near else _classes(classes, names)
            raise UsageError(f"labels={list(labels)}: {label} is no class of the checkpoint: {hint}")
        found.append(number)
    if not found:
        raise UsageError(f"labels=[]: {_classes(classes, names)}")
    return found


def _classes(classes: int, names: Sequence[str]) -> str:
    if list(names) in ([], list(map(str, range(classes)))):
        return f"must be classes from 0 to {classes - 1}"
    listed = f"{', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
    return f"must be classes from 0 to {classes - 1}, or {listed}"


def _read(path: Path, model: TrainedModel) -> dict[str, Tensor]:
    if path.suffix not in (".npz", ".csv"):
        raise UsageError(f"condition={str(path)!r}: must be an .npz or .csv file")
    if not path.is_file():
        raise FileNotFoundError(f"condition={str(path)!r}: there is no such file")
    rows = (_read_npz if path.suffix == ".npz" else _read_csv)(path, model)
    told = taken_by(model.network)
    for name, value in rows.items():
        if name not in told:
            right = f"it is told {', '.join(told)}" if told else "it is told nothing: leave --condition out"
            raise UsageError(f"condition={str(path)!r}: has {name}, which the model is not told: {right}")
        if value.shape[1:] and name == "vector" and value.shape[1] != (width := model.network.condition_dim):
            raise UsageError(f"condition={str(path)!r}: a vector has {value.shape[1]} numbers: must be {width}")
    counts = {name: len(value) for name, value in rows.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        told_counts = ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"
        raise UsageError(f"condition={str(path)!r}: has rows of {told_counts}: must be equally many, and at least 1")
    return rows


def _read_npz(path: Path, model: TrainedModel) -> dict[str, Tensor]:
    """Arrays by the names of conditions; of pictures, 8-bit ones (N, H, W, C) become floats in [-1, 1]."""
    import zipfile

    import numpy as np

    try:
        with np.load(path) as arrays:
            given: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"condition={str(path)!r}: is no .npz of arrays ({' '.join(str(error).split())})") from error
    if unknown := [name for name in given if name not in CONDITIONS]:
        raise UsageError(
            f"condition={str(path)!r}: has an array {unknown[0]!r}: must be named {', '.join(taken_by(model.network))}"
        )
    rows = {}
    for name, array in given.items():
        if not array.shape or array.dtype.kind not in "fiu":
            raise UsageError(f"condition={str(path)!r}: {name} is {array.dtype} {array.shape}: must be rows of numbers")
        value = torch.from_numpy(array)
        if name == "labels":
            rows[name] = torch.tensor(class_numbers(value.flatten().tolist(), model))
        elif name == "picture" and value.dtype == torch.uint8 and value.ndim == 4:
            rows[name] = value.permute(0, 3, 1, 2).float() / 127.5 - 1
        else:
            rows[name] = value.float()
    return rows


def _read_csv(path: Path, model: TrainedModel) -> dict[str, Tensor]:
    """The columns that the training data had, as the vector, and the column ``label``, as classes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, restkey="", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"condition={str(path)!r}: is no CSV file in UTF-8 ({error})") from error
    columns = [name for name in lines[0] if name] if lines else []
    rows: dict[str, Tensor] = {}
    if LABEL in columns and "labels" in taken_by(model.network):
        rows["labels"] = torch.tensor(class_numbers([line[LABEL] for line in lines], model))
        columns.remove(LABEL)
    wanted = model.vector_names or columns
    if missing := [name for name in wanted if name not in columns]:
        raise UsageError(
            f"condition={str(path)!r}: has no column {missing[0]!r}: its first row must name {', '.join(wanted)}"
        )
    if wanted and "vector" in taken_by(model.network):
        rows["vector"] = torch.tensor(
            [[_number(line[name], name, number, path) for name in wanted] for number, line in enumerate(lines, start=2)]
        )
    return rows


def _number(cell: str | None, column: str, row: int, path: Path) -> float:
    try:
        value = float(cell or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"condition={str(path)!r}: {cell or ''!r} in row {row} of column {column!r} is no number")
    return value
