"""A config explained line by line: the page names a line by its path, and the file itself is quoted.

On a page, ``<!-- configs/quickstart.yaml: trainer trainer.max_epochs -->`` stands for these two lines of that file,
with the comments above them; ``…: trainer.*`` for those of all that is below ``trainer`` and not named by itself.
Each line must be quoted once: the build fails where one has no explanation.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

MARK = re.compile(r"^<!-- (\S+\.yaml): (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Put the lines in the places of the marks."""
    return quote(markdown, Path(config.config_file_path).parent)


def quote(markdown: str, root: Path) -> str:
    """The page with the lines of the files, whose paths are relative to ``root``.

    Raises:
        PluginError: if a mark names what is not in the file, or a line is not quoted or quoted twice.
    """
    for file in dict.fromkeys(found[1] for found in MARK.finditer(markdown)):
        markdown = _quote_file(markdown, file, (root / file).read_text())
    return markdown


def _quote_file(markdown: str, file: str, text: str) -> str:
    first = dict(_lines(yaml.compose(text), ()))
    starts = sorted({_with_comments(number, text) for number in first.values()})
    named = {name for found in MARK.finditer(markdown) if found[1] == file for name in found[2].split()}
    left = set(starts)

    def lines(found: re.Match[str]) -> str:
        if found[1] != file:
            return found[0]
        quoted = []
        for name in found[2].split():
            paths = [p for p in first if p == name or (fnmatchcase(p, name) and p not in named)]
            if not paths:
                raise PluginError(f"{file} has no {name}, which is explained")
            wanted = sorted({_with_comments(first[path], text) for path in paths})
            if again := [start for start in wanted if start not in left]:
                raise PluginError(f"{file}, line {again[0] + 1}: is quoted twice, for {name} too")
            left.difference_update(wanted)
            for start in wanted:
                end = min((other for other in starts if other > start), default=len(text.splitlines()))
                quoted += text.splitlines()[start:end]
        return "\n".join(["```yaml", *quoted, "```"])

    markdown = MARK.sub(lines, markdown)
    if left:
        raise PluginError(f"{file}, line {min(left) + 1}: {text.splitlines()[min(left)].strip()!r} is not explained")
    return markdown


def _lines(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The dotted path of every key and item that begins a line, and that line's number, counted from 0."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            below = (*path, key.value)
            yield ".".join(below), key.start_mark.line
            yield from _lines(value, below)
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        for number, item in enumerate(node.value):
            yield from _lines(item, (*path, str(number)))


def _with_comments(number: int, text: str) -> int:
    """The line where the comments above a line begin."""
    lines = text.splitlines()
    while number > 0 and lines[number - 1].lstrip().startswith("#"):
        number -= 1
    return number
