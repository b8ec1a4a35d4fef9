"""The notebooks: they run as they are, and what is kept of their last run is fit to be read."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import preloaded
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 2 * 2**20
SECONDS_PER_CELL = 1200  # ends one that hangs; it says nothing of how long a cell may take
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|opt|mnt|var|private|Users)/|[A-Z]:\\\\|site-packages")
PROGRESS = re.compile(r"\d(it|s|image|step|picture)/(s|it|image|step|picture)\b|\d%\|")

SMALL = {
    "1_the_mathematics_on_points": {
        '"figure.dpi": 80': '"figure.dpi": 40',
        "AnnealedLangevin(50, 5e-4)": "AnnealedLangevin(20, 5e-4)",
        "DDPM(steps=1000)": "DDPM(steps=100)",
        "steps: int = 2000": "steps: int = 600",
        "smooth[-5:].mean() < floor + 0.15": "smooth[-2:].mean() < floor + 0.3",
        "assert distance < 0.25": "assert distance < 0.35",
        "torch.logspace(-1.3, 0.69, 25)": "torch.logspace(-1.3, 0.69, 5)",
    },
    "2_mnist_from_zero": {
        "EPOCHS = 8  # of 281 steps": "EPOCHS = 1",
        "batch_size=32": "batch_size=16",
        "70 * 2**i": "35 * 2**i",
        "channels=(32, 64)": "channels=(16, 32)",
        "total_iters=EPOCHS * 281": "total_iters=80",
        "ema_decay=0.999": "ema_decay=0.95",
        "max_epochs=EPOCHS,": "max_epochs=EPOCHS, limit_train_batches=80, limit_val_batches=2,",
        "losses[-20:].mean() < 0.5": "losses[-20:].mean() < 0.7",
        "samples = module.sample(num=64": "samples = module.sample(num=16",
        "again.sample(num=64": "again.sample(num=16",
    },
    "3_samplers": {
        "budgets = [4, 8, 16, 32]": "budgets = [4, 16]",
        "rtol=1e-5, atol=1e-5": "rtol=1e-3, atol=1e-3",
        "< 2 * floor": "< 4 * floor",
        """scores["DPMSolverPlusPlus"][1] < scores["EulerMaruyama"][1]""": (
            """scores["DPMSolverPlusPlus"][0] < scores["EulerMaruyama"][0]"""
        ),
        "range(0, 1000, 10)": "range(0, 1000, 40)",
        "torch.arange(100) % 10": "torch.arange(25) % 10",
        "(denoiser, (100, 1, 28, 28)": "(denoiser, (25, 1, 28, 28)",
        "sample_data(4000, seeded(1))": "sample_data(1000, seeded(1))",
        "sample_data(4000, seeded(2))": "sample_data(1000, seeded(2))",
        "make(nfe)(points, (4000, 2)": "make(nfe)(points, (1000, 2)",
    },
    "4_likelihood_and_latents": {
        '"rtol": 1e-3, "atol": 1e-3': '"rtol": 3e-2, "atol": 3e-2',
        "told_each(label) for label in range(10)": "told_each(label) for label in range(2)",
        '"rtol": 1e-4, "atol": 1e-4': '"rtol": 1e-3, "atol": 1e-3',
        "abs().max() < 0.02": "abs().max() < 0.1",
        "torch.linspace(0, 1, 8)": "torch.linspace(0, 1, 3)",
        "for a, b in ((3, 8), (4, 9)):": "for a, b in ((3, 8),):",
        "decode(between, (8, 1, 28, 28), x_T=(1": "decode(between, (3, 1, 28, 28), x_T=(1",
        "decode(between, (8, 1, 28, 28), x_T=slerp": "decode(between, (3, 1, 28, 28), x_T=slerp",
        "rows = [2, 4, 7]": "rows = [2, 7]",
    },
    "5_your_own_data_and_network": {
        "EPOCHS = 120": "EPOCHS = 20",
        "range(200)": "range(100)",
        "init_args: {width: 64}": "init_args: {width: 32}",
        "network=Stack(width=64)": "network=Stack(width=32)",
        "mean()).abs() < 0.15": "mean()).abs() < 0.3",
    },
}
"""What is written otherwise where the notebooks are run here, so that each takes seconds.

Each text is found exactly once. Where a bound depends on the size, a weaker one stands in its place.
"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book: Any) -> Iterator[Any]:
    for cell in code_cells(book):
        yield from cell.outputs


def make_small(book: Any, changes: dict[str, str]) -> None:
    """Write the changes into the cells; each text has to stand in them exactly once."""
    for text, smaller in changes.items():
        (cell,) = [cell for cell in code_cells(book) for _ in range(cell.source.count(text))]
        cell.source = cell.source.replace(text, smaller)


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
    for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(workplace.parent / name.lower()))
    # the kernel, and the commands that a notebook starts, fork from a process that has done the imports
    monkeypatch.setattr(preloaded, "MODULES", (*preloaded.MODULES, "ipykernel_launcher"))
    kept = nbformat.read(path, as_version=4)
    book = nbformat.read(workplace / path.name, as_version=4)
    make_small(book, SMALL[path.stem])
    NotebookClient(
        book,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        extra_arguments=["--matplotlib=inline"],  # the default where Matplotlib is not imported before the kernel
        resources={"metadata": {"path": str(workplace)}},
    ).execute()
    assert [output.text for output in outputs(book) if output.get("name") == "stderr"] == []
    assert [pictures(cell) for cell in code_cells(book)] == [pictures(cell) for cell in code_cells(kept)]
    assert MACHINE.findall(text_of(book)) == []
