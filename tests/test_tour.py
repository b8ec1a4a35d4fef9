"""The page that says which file to open: what it names is there, and what is there it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_lightning"
PAGE = (ROOT / "docs" / "tour.md").read_text()

HEAD = "| you want to change | open |"
ITEM = re.compile(r"^\d\. `([^`]+)`: (.+(?:\n   .+)*)", re.MULTILINE)


def to_open(page: str) -> set[str]:
    """All that the right columns of the tables name, as it is written there."""
    rows = [row for table in page.split(HEAD)[1:] for row in table.split("\n\n")[0].splitlines()[2:]]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.rstrip(" |").split(" | ")[-1])}


def ways(page: str) -> list[list[tuple[str, str]]]:
    """The files of each way in their order, with what is said of each."""
    return [ITEM.findall(section) for section in page.split("\n## ") if re.match(r"A (?:batch|picture)'s way", section)]


def nowhere(names: set[str], package: Path, root: Path) -> set[str]:
    """Those that are neither in the package nor in the repository."""
    return {name for name in names if not (package / name).exists() and not (root / name).exists()}


def unnamed(names: set[str], package: Path) -> set[str]:
    """The package's modules that are not named, nor the folder that they are in."""
    modules = {path.relative_to(package) for path in package.rglob("*.py") if not path.name.startswith("_")}
    return {path.as_posix() for path in modules if not {path.as_posix(), f"{path.parent.as_posix()}/"} & names}


def unsaid(file: str, text: str) -> set[str]:
    """The names in what is said of a file that are not in it."""
    parts = {part for name in re.findall(r"`([\w.]+)`", text) for part in name.split(".")}
    return {part for part in parts if not re.search(rf"\b{part}\b", file)}


def test_every_file_that_is_named_is_there():
    assert nowhere(to_open(PAGE) | {file for way in ways(PAGE) for file, _ in way}, PACKAGE, ROOT) == set()


def test_every_module_is_named():
    assert unnamed(to_open(PAGE), PACKAGE) == set()


def test_each_way_is_of_at_most_six_files():
    batch, picture = ways(PAGE)
    for way in (batch, picture):
        assert 3 < len(way) <= 6
        assert len({file for file, _ in way}) == len(way)


@pytest.mark.parametrize(("file", "text"), [item for way in ways(PAGE) for item in way])
def test_what_is_said_of_a_file_on_the_way_is_in_it(file, text):
    assert re.search(r"`\w+", text)
    assert unsaid((PACKAGE / file).read_text(), text) == set()


def test_a_page_that_is_behind_is_noticed(tmp_path):
    package = tmp_path / "package"
    for name in ("sde.py", "room/__init__.py", "room/new.py", "whole/any.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (tmp_path / "pyproject.toml").touch()
    row = "| where `config.yaml` comes from | `sde.py`, `gone.py`, `whole/`; `pyproject.toml` |"
    page = f"## Tables\n\n{HEAD}\n|---|---|\n{row}\n\n## Else\n\n| `else.py` |"
    assert to_open(page) == {"sde.py", "gone.py", "whole/", "pyproject.toml"}
    assert nowhere(to_open(page), package, tmp_path) == {"gone.py"}
    assert unnamed(to_open(page), package) == {"room/new.py"}
    assert ways("\n## A batch's way\n\n1. `a.py`: `A.b` does\n   it.\n2. `c.py`: `d`.\n") == [
        [("a.py", "`A.b` does\n   it."), ("c.py", "`d`.")]
    ]
    assert unsaid("class A:\n    def c(self):", "`A.b` does it, by `c`") == {"b"}
