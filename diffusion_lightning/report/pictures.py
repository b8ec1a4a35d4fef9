"""Pictures and animations of runs as figures with a slider over their epochs, everything inside the page."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_lightning.images import CAPTION
from diffusion_lightning.report.run import Run

MOST_EPOCHS = 60
"""Of a figure; of more, as many are shown, evenly spread."""

BROAD = 700
"""Pixels of width from which on a picture takes the whole width of the page."""


@dataclass(frozen=True)
class Picture:
    """A picture that the page holds.

    Args:
        uri: all of its bytes, as ``data:image/…``.
        width: in pixels.
        height: in pixels.
        caption: what it shows, as its file says; empty if it does not.
    """

    uri: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Pane:
    """The part of a figure that one run has.

    Args:
        run: its number.
        pictures: by their epochs, ascending.
        shown: for each position of the slider the epoch whose picture is shown: that of the position, or else the
            nearest earlier one that the run has; None before its first.
        animation: the newest, if it has any, and its epoch.
        flaw: what cannot be shown; empty if all can.
    """

    run: int
    pictures: dict[int, Picture]
    shown: list[int | None]
    animation: tuple[int, Picture] | None
    flaw: str

    @property
    def caption(self) -> str:
        """What the newest picture shows."""
        return self.pictures[max(self.pictures)].caption if self.pictures else ""


@dataclass(frozen=True)
class Figure:
    """The pictures of one folder's name, of one or several runs.

    Args:
        name: of the folder.
        epochs: of the slider's positions, ascending.
        found: how many epochs there are pictures of.
        panes: of the runs that have any.
    """

    name: str
    epochs: list[int]
    found: int
    panes: list[Pane]

    @property
    def is_broad(self) -> bool:
        """Whether a picture is so wide that it is small in half of a page."""
        pictures = [picture for pane in self.panes for picture in pane.pictures.values()]
        return max((picture.width for picture in pictures), default=0) > BROAD


def figures(runs: Sequence[Run], tick: Callable[[], object] = lambda: None) -> list[Figure]:
    """All folders of pictures and animations of the runs; samples first, then the others by name.

    Args:
        runs: one or more.
        tick: called after every picture that has been read.
    """
    names = {name for run in runs for name in [*run.pictures, *run.animations]}
    return [_figure(name, runs, tick) for name in sorted(names, key=lambda name: (name != "samples", name))]


def spread(items: Sequence[int]) -> list[int]:
    """``MOST_EPOCHS`` of the items, evenly spread with the first and the last; all if they are not more.

    Item i of the n that are kept is number round(i·(len(items) − 1)/(n − 1)).
    """
    if len(items) <= MOST_EPOCHS:
        return list(items)
    return [items[round(i * (len(items) - 1) / (MOST_EPOCHS - 1))] for i in range(MOST_EPOCHS)]


def embed(path: Path) -> Picture | None:
    """A PNG or GIF file as it is; None if it cannot be read to its end, for a browser would show a broken picture."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG", "GIF")) as image:
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
            kind, (width, height) = str(image.format).lower(), image.size
            caption = str(image.info.get(CAPTION, ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width, height, caption)


def _figure(name: str, runs: Sequence[Run], tick: Callable[[], object]) -> Figure:
    found = sorted({epoch for run in runs for epoch in run.pictures.get(name, {})})
    epochs = spread(found)
    panes = [_pane(number, run, name, epochs, tick) for number, run in enumerate(runs) if _has(run, name)]
    return Figure(name, epochs, len(found), panes)


def _has(run: Run, name: str) -> bool:
    return name in run.pictures or name in run.animations


def _pane(number: int, run: Run, name: str, epochs: Sequence[int], tick: Callable[[], object]) -> Pane:
    wanted = _nearest_earlier(epochs, run.pictures.get(name, {}))
    pictures, broken = {}, list[Path]()
    for epoch in sorted({epoch for epoch in wanted if epoch is not None}):
        path = run.pictures[name][epoch]
        picture = embed(path)
        if picture is None:
            broken.append(path)
        else:
            pictures[epoch] = picture
        tick()
    animation = None
    for epoch, path in sorted(run.animations.get(name, {}).items(), reverse=True):
        moving = embed(path)
        tick()
        if moving is not None:
            animation = epoch, moving
            break
        broken.append(path)
    flaw = f"Not whole, and left out: {', '.join(path.name for path in broken)}." if broken else ""
    return Pane(number, pictures, _nearest_earlier(epochs, pictures), animation, flaw)


def _nearest_earlier(epochs: Sequence[int], there: Mapping[int, object]) -> list[int | None]:
    """For each of the ascending epochs the last one that is there up to it; None where there is none."""
    return [max((known for known in there if known <= epoch), default=None) for epoch in epochs]
