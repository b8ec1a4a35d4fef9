"""What an evaluation leaves: its figures as JSON, as a table in Markdown and on the screen, and a sweep's curve."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.disk import replace
from diffusion_lightning.images import write_png
from diffusion_lightning.metrics.cost_curve import cost_picture
from diffusion_lightning.metrics.evaluation import is_spread, spread_of
from diffusion_lightning.metrics.guidance_curve import guidance_picture
from diffusion_lightning.tables import output_console

LONGEST_NAME = 150
"""Of a folder; most systems allow 255 bytes."""


def folder_name(*parts: str) -> str:
    """A folder's name of all that decides the values, so that other settings have another one."""
    return re.sub(r"[^\w=.]+", "-", "_".join(filter(None, parts))).replace("-_", "_").strip("-")[:LONGEST_NAME]


def new_folder(parent: Path, name: str) -> Path:
    """A folder made now; numbered if there are earlier ones of that name."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.exists():  # something on the way to it is a file
                raise UsageError(f"output={str(parent)!r}: no folder can be made there") from error
        except OSError as error:
            raise UsageError(f"output={str(parent)!r}: no folder can be made there ({error.strerror})") from error
    raise AssertionError


@dataclass
class Results:
    """What has been found so far: an entry for each way to draw.

    Attributes:
        is_sweep: whether there are several ways in all.
        guidance_weights: that each sampler is tried with; None if it is with one guidance, or with none.
        entries: as they are written down.
        families: of each entry, its sampler without its steps, and its guidance.
    """

    is_sweep: bool
    guidance_weights: Sequence[float] | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)
    families: list[str] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry of the smallest FID; None where it is not measured, or not a number."""
        measured = [entry for entry in self.entries if _fid_name(entry) is not None]
        finite = [entry for entry in measured if math.isfinite(entry["metrics"][_fid_name(entry)])]
        return min(finite, key=lambda entry: entry["metrics"][_fid_name(entry)], default=None)

    def write(self, folder: Path) -> None:
        """Write ``results.json``, ``results.md``, and of a sweep ``sweep.png``, each whole or not at all.

        Of a sweep over weights of guidance there is ``guidance.png``, too.
        """
        best = self.best
        chosen = {"best": best and best["sampler"]}
        if best is not None and best.get("guidance"):
            chosen["best_guidance"] = best["guidance"]
        content = {"sweep": self.entries, **chosen} if self.is_sweep else self.entries[0]
        replace(folder / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        replace(folder / "results.md", self.markdown())
        if self.is_sweep and best is not None:
            name = _fid_name(best)
            assert name is not None
            curves: dict[str, list[tuple[int, float]]] = {}
            for family, entry in zip(self.families, self.entries, strict=True):
                curves.setdefault(family, []).append((entry["nfe"], entry["metrics"][name]))
            write_png(cost_picture(curves, name), folder / "sweep.png")
        if self.guidance_weights is not None:
            write_png(guidance_picture(*self.over_weights()), folder / "guidance.png")

    def over_weights(self) -> tuple[list[str], dict[str, list[tuple[float, list[float]]]]]:
        """The names of what is shown against the weight, FID or the first metric, and agreement; and by sampler the
        weights that have been tried so far, each with its values.
        """
        metrics = [name for name in self.entries[0]["metrics"] if not is_spread(name, self.entries[0]["metrics"])]
        shown = [_fid_name(self.entries[0]) or metrics[0]]
        shown += [
            name for name in metrics if name.startswith("agreement/") and "_real@" not in name and name not in shown
        ]
        curves: dict[str, list[tuple[float, list[float]]]] = {}
        assert self.guidance_weights is not None
        # every sampler is tried with all weights before the next one
        for entry, weight in zip(self.entries, itertools.cycle(dict.fromkeys(self.guidance_weights)), strict=False):
            curves.setdefault(entry["sampler"], []).append((weight, [entry["metrics"][name] for name in shown]))
        return shown, curves

    def markdown(self) -> str:
        """The table, and what it is of."""
        first, best = self.entries[0], self.best
        lines = [
            f"# {Path(first['checkpoint']).name}, step {first['step']}",
            "",
            f"{first['num']} samples of `{first['checkpoint']}` (epoch {first['epoch']}), EMA weights, "
            f"{first['precision']}, {_seeds(first)}; features {first['feature']}, reference "
            f"{first['reference'] or 'none'}.",
            "",
            *_plain(*self.table()),
            "",
            self.settings(),
        ]
        shown = best or first
        if "neighbours" in shown:
            near = shown["neighbours"]
            lines += [
                "",
                f"Copies of real images among the samples of {_way(shown)}: {near['copies']}. The smallest ratio "
                "of the distances to the nearest and to the second nearest real image, in features, is "
                f"{near['smallest_ratio']:.3g}; below 1/3 it is called a copy.",
                "",
                "![samples and their nearest real images](neighbours.png)",
            ]
        if "worst" in shown:
            worst, asked = shown["worst"], "what was asked for" if shown["worst"]["asked"] else "its likeliest class"
            lines += [
                "",
                f"The {worst['shown']} samples of {_way(shown)} that the classifier is least sure of: it gives "
                f"{asked} a probability of at most {worst['highest']:.2g}.",
                "",
                "![the samples that the classifier is least sure of](worst.png)",
            ]
        if self.is_sweep and best is not None:
            lines += ["", f"Best: {_way(best)}, {best['nfe']} NFE.", "", "![FID over NFE](sweep.png)"]
        if self.guidance_weights is not None:
            lines += ["", "![what guidance of each weight does](guidance.png)"]
        return "\n".join(lines) + "\n"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: of several samplers a row each, of one a row for each of its values."""
        names = [name for name in self.entries[0]["metrics"] if not is_spread(name, self.entries[0]["metrics"])]
        broken = any("not_finite" in entry for entry in self.entries)
        guided = any(entry.get("guidance") for entry in self.entries)
        header = [
            *("sampler", *(["guidance"] if guided else []), "NFE"),
            *(*names, "seconds", *(["samples not finite"] if broken else [])),
        ]
        rows = [
            [
                entry["sampler"] + (" (best)" if self.is_sweep and entry is self.best else ""),
                *([entry.get("guidance") or "none"] if guided else []),
                str(entry["nfe"]),
                *(_value(entry["metrics"], name) for name in names),
                f"{entry['seconds']:.1f}",
                *([str(entry.get("not_finite", 0))] if broken else []),
            ]
            for entry in self.entries
        ]
        if self.is_sweep:
            return header, rows
        upright = [list(pair) for pair in zip(header, rows[0], strict=True)]
        return upright[0], upright[1:]

    def settings(self) -> str:
        """What else decides the values, such as how large KID's subsets could be; of a sweep what is alike."""
        told = []
        for name, values in self.entries[0]["settings"].items():
            if any(entry["settings"].get(name) != values for entry in self.entries):
                continue
            if isinstance(values, dict):
                told.append(f"{name} ({', '.join(f'{key}={value}' for key, value in values.items())})")
            else:
                told.append(f"{name}={values}")
        return f"Settings: {', '.join(told)}."

    def show(self) -> None:
        """Print the table, framed on a terminal, plain elsewhere."""
        header, rows = self.table()
        console = output_console()
        if not console.is_terminal:
            print("\n".join([*_plain(header, rows), "", self.settings()]))
            return
        table = Table(*header, box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row, style="bold" if row[0].endswith(" (best)") else None)
        console.print(table)
        console.print(self.settings(), style="dim")


def _fid_name(entry: dict[str, Any]) -> str | None:
    return next((name for name in entry["metrics"] if name.startswith("fid/")), None)


def _seeds(entry: dict[str, Any]) -> str:
    if "seeds" not in entry:
        return f"seed {entry['seed']}"
    return f"of each of the seeds {entry['seeds'][0]} to {entry['seeds'][-1]}, mean ± standard deviation over them"


def _way(entry: dict[str, Any]) -> str:
    """A sampler, and what steered it."""
    return ", ".join(filter(None, (entry["sampler"], entry.get("guidance"))))


def _value(metrics: dict[str, float], name: str) -> str:
    spread = spread_of(name, metrics)
    return f"{metrics[name]:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def _plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines]
