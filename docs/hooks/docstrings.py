"""Docstrings as Markdown: the formulas, roles, lists and tables of reStructuredText in the notation of the pages.

The docstrings are written to be read where they are, in an editor, and by ``help``.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import griffe

import diffusion_lightning

DISPLAYED = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc):`(~?)([^`]+)`")
LINK = re.compile(r"`([^`<]+?)\s*<([^`>]+)>`__?", re.DOTALL)
LITERAL = re.compile(r"``(.+?)``")
TERM = re.compile(r"^(``\S+``)\n    (?=\S)", re.MULTILINE)
TABLE = re.compile(r"^(=+(?: +=+)+)\n((?:.*\n)+?)\1$(?:\n((?:.+\n)+)\1$)?", re.MULTILINE)


def to_markdown(text: str) -> str:
    """A docstring without its indentation, as Markdown."""
    text = DISPLAYED.sub(_displayed, text)
    text = INLINE.sub(lambda found: f"${found[1].strip()}$", text)
    text = TABLE.sub(_table, text)
    text = TERM.sub(r"\1\n:   ", text)
    text = ROLE.sub(_reference, text)
    text = LINK.sub(r"[\1](\2)", text)
    return LITERAL.sub(lambda found: found[0] if "`" in found[1] else f"`{found[1]}`", text)


class Markdown(griffe.Extension):
    """Hands docstrings over as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Names that a folder of the package loads on first use: griffe reads the source, and does not see them."""
        if mod.is_init_module and mod.parent is not None:
            for name, part in getattr(import_module(mod.path), "_MODULE_OF", {}).items():
                mod.set_member(name, griffe.Alias(name, f"{mod.path}.{part}.{name}", parent=mod))


def page_identifier(name: str) -> str:
    """By which the reference's entry of a public name is linked to."""
    return f"diffusion_lightning.{diffusion_lightning._MODULE_OF[name]}.{name}"


def _displayed(found: re.Match[str]) -> str:
    indent, latex = found[1], " ".join(found[2].split())
    return f"{indent}$$\n{indent}{latex}\n{indent}$$"


def _reference(found: re.Match[str]) -> str:
    """A link where the reference has the name; a module or a method by its name alone."""
    target = found[2].removeprefix("diffusion_lightning.")
    name = target.split(".")[-1]
    if name in diffusion_lightning.__all__:
        return f"[`{name}`][{page_identifier(name)}]"
    return f"`{name if found[1] else target}`"


def _table(found: re.Match[str]) -> str:
    """A table of columns under rules of ``=``, with or without a head."""
    starts = [rule.start() for rule in re.finditer("=+", found[1])]
    head, body = (found[2], found[3]) if found[3] else ("", found[2])
    rows: list[list[str]] = [[""] * len(starts)] if not head else []
    for line in f"{head}{body}".splitlines():
        cells = list(_cells(line, starts))
        if line.startswith(" "):  # goes on with the row before
            for column, cell in cells:
                rows[-1][column] += f" {cell}"
        else:
            rows.append([""] * len(starts))
            for column, cell in enumerate(cell for _, cell in cells):
                rows[-1][column] = cell
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(line: str, starts: list[int]) -> Iterator[tuple[int, str]]:
    """Each cell and the column that it begins nearest to: accents make lines longer than they look."""
    for cell in re.finditer(r"\S+(?: \S+)*", line):
        distances = [abs(start - cell.start()) for start in starts]
        yield distances.index(min(distances)), cell[0].replace("|", r"\|")
