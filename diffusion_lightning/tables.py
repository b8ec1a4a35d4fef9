"""Tables by rich: with lines and colours on a terminal, plain aligned text elsewhere."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def output_console() -> Console:
    """Standard output, as a terminal only if it is one, whatever colours the environment asks for."""
    return Console(highlight=False, markup=False, force_terminal=sys.stdout.isatty())


def print_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to standard output; its first column is flush left, the others flush right."""
    console = output_console()
    if not console.is_terminal:
        console.width = 1000  # the lines of a log file are as long as they must be
    box = SIMPLE_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", title_style="bold", box=box)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@dataclass
class Summary:
    """What there is to say at the end: facts, then tables.

    Attributes:
        facts: names and what is said of each.
        tables: rows of equal length, the first of them the header.
    """

    facts: list[tuple[str, str]]
    tables: list[list[list[str]]] = field(default_factory=list)

    def __str__(self) -> str:
        """Plain lines, the tables' columns aligned."""
        facts = [f"  {name:10}{told}" for name, told in self.facts]
        return "\n".join(["Summary", *facts, *(line for table in self.tables for line in _aligned(*table))])

    def show(self) -> None:
        """Print it to standard output."""
        console = output_console()
        if not console.is_terminal:
            print(self)
            return
        console.print("Summary", style="bold")
        for name, told in self.facts:
            console.print(f"  {name:10}{told}")
        for header, *rows in self.tables:
            print_table(None, header, rows)


def _aligned(header: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """Lines of columns as wide as they must be, the first one flush left."""
    lines = [header, *([f"  {name}", *cells] for name, *cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  "
        + first.ljust(max(widths[0], 10))
        + "".join(f"{cell:>{width + 2}}" for cell, width in zip(cells, widths[1:], strict=True))
        for first, *cells in lines
    ]
