"""The notebooks: they run as they are, and what is kept of their last run is fit to be read."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 2 * 2**20
SECONDS_PER_CELL = 1200  # ends one that hangs; it says nothing of how long a cell may take
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|opt|mnt|var|private|Users)/|[A-Z]:\\\\|site-packages")
PROGRESS = re.compile(r"\d(it|s|image|step|picture)/(s|it|image|step|picture)\b|\d%\|")

SMALL = {"2_mnist_from_zero": "EPOCHS = 1", "5_your_own_data_and_network": "EPOCHS = 20"}
"""What stands here in the cell with the tag ``parameters``, so that it takes a minute."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book: Any) -> Iterator[Any]:
    for cell in code_cells(book):
        yield from cell.outputs


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def text_of(book: Any) -> str:
    """All that can be read: the cells' text and the text among the outputs."""
    parts = [cell.source for cell in book.cells]
    for output in outputs(book):
        parts.append(output.get("text", ""))
        parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def test_they_are_all_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "1_the_mathematics_on_points",
        "2_mnist_from_zero",
        "3_samplers",
        "4_likelihood_and_latents",
        "5_your_own_data_and_network",
    ]


@each_notebook
def test_what_is_kept_of_the_last_run(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < LARGEST
    # run from top to bottom in one go, and not changed since
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))
    assert sum(map(pictures, code_cells(book))) >= 1
    assert {output.output_type for output in outputs(book)} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in outputs(book) if output.get("name") == "stderr"] == []
    assert MACHINE.findall(text_of(book)) == []
    assert PROGRESS.findall(text_of(book)) == []


@each_notebook
def test_links_lead_somewhere(path):
    pages = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    targets = re.findall(r"\]\(([^)#]+)", "\n".join(pages))
    assert [target for target in targets if "://" not in target and not (FOLDER / target).is_file()] == []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, where one notebook leaves its model for the next ones."""
    return Path(
        shutil.copytree(FOLDER, tmp_path_factory.mktemp("notebooks") / "copy", ignore=shutil.ignore_patterns("runs"))
    )


@each_notebook
def test_it_runs_from_top_to_bottom(path, workplace, monkeypatch):
    """Its own assertions hold, it complains of nothing, and it draws what the kept one draws, at small size."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(workplace.parent / name.lower()))
    kept = nbformat.read(path, as_version=4)
    book = nbformat.read(workplace / path.name, as_version=4)
    parameters = [cell for cell in code_cells(book) if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == (path.stem in SMALL)
    for cell in parameters:
        cell.source = SMALL[path.stem]
    NotebookClient(
        book, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(workplace)}}
    ).execute()
    assert [output.text for output in outputs(book) if output.get("name") == "stderr"] == []
    assert [pictures(cell) for cell in code_cells(book)] == [pictures(cell) for cell in code_cells(kept)]
    assert MACHINE.findall(text_of(book)) == []
