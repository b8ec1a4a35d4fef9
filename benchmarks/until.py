"""How many minutes a system needs to the FID that ours has at half the race's: at most so many.

A system whose learning rate stays trains on from where the race left it, and is judged again and again. One whose rate
falls by a schedule has, for each length that is tried, a training of its own with a schedule of that length: an hour's,
cut off in the middle, would be no fair answer. Each draws by the sampler that the race has found to be its best.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import judging
import race
from alone import alone
from pace import steps_in
from systems import PARTS, system_class

AT = race.SHARES.index(1 / 2)
"""The mark at which ours sets the figure."""


def rival(name: str) -> str:
    """Ours in the same part."""
    return next(names[0] for names in PARTS.values() if name in names)


def lengths(minutes: float, limit: float, is_scheduled: bool) -> list[float]:
    """The minutes after which it is judged: each twice as many as before, or, on a constant rate, half the race more.

    Args:
        minutes: of the race.
        limit: the last, unless the race was longer.
        is_scheduled: whether each is a training of its own.
    """
    found = [minutes]
    while found[-1] < limit:
        found.append(min(found[-1] * 2 if is_scheduled else found[-1] + minutes / 2, limit))
    return found[1:]


def first_reached(at: Sequence[tuple[float, float]], target: float) -> float | None:
    """The minutes of the first of (minutes, FID) with an FID that is at most the target; None if none has."""
    return next((minutes for minutes, value in at if value <= target), None)


def search(
    name: str, root: str, minutes: float, limit: float, rate: float, num: int, threads: int, folders: dict[str, Path]
) -> dict[str, Any]:
    """Train one system on until it is as good as ours at half the minutes, or the limit is over.

    Args:
        name: of a system that has raced.
        root: folder of MNIST.
        minutes: of the race.
        limit: in minutes.
        rate: its steps a second.
        num: samples that it is judged by.
        threads: of torch.
        folders: those of the race.
    """
    target = _fids(race.of_folder(folders[rival(name)]))[AT]
    paths = race.of_folder(folders[name])
    at = list(zip((share * minutes for share in race.SHARES), _fids(paths), strict=True))
    sampler, start = race.sampler_of(folders[name])["best"], paths[-1]
    is_scheduled = system_class(name).is_scheduled
    for length in lengths(minutes, limit, is_scheduled):
        if first_reached(at, target) is not None:
            break
        path = folders[name] / "until" / f"{length:g}.pt"
        steps = steps_in(length, rate)
        before = None if is_scheduled else start
        if not race.finished(path).is_file():
            alone(race.train_part, name, root, steps, steps, before, path, threads)
        if not judging.is_judged(path, num):
            alone(judging.judge, name, root, path, num, sampler, threads)
        at.append((length, _fids([path])[0]))
        start = path
    return {"target": target, "minutes": first_reached(at, target), "limit": limit, "at": at}


def _fids(paths: Sequence[Path]) -> list[float]:
    return [json.loads(path.with_suffix(".json").read_text())["fid"][judging.NEWEST] for path in paths]
