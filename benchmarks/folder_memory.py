"""What a folder of a million pictures takes: memory of the training process, and of each worker that reads from it.

    python benchmarks/folder_memory.py --workers 2

A folder as ImageNet's is made of hard links to a few pictures: 1,000 classes, names such as
``n01440764/n01440764_10026.png``. Each row is of a process of its own. *Found*: what its resident memory has grown by
when the pictures have been found; *looked at*: the same, when the start of a training has looked at each file;
*peak*: the most that it was until then. *A worker*: the memory that is a forked worker's own, and no longer shared
with the training process, after it has read its batches; less what it is for a folder of a thousand pictures and as
many batches. Beside ours stands torchvision's ImageFolder, which keeps a tuple of a name and a number for each
picture, and looks at none before its turn. ``--name`` gives ours another name in the table, whose other rows stay:
that of another version, which PYTHONPATH leads to.
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import torchvision
from alone import alone
from PIL import Image
from results import machine, read, table, write
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize
from tqdm import tqdm

from diffusion_lightning.data import ImageFolder

SIZE = 32
BATCH_SIZE = 128
CLASSES = 1000


def make_folder(root: Path, pictures: int) -> None:
    """Fill a folder with so many pictures, the same one under many names."""
    for label in tqdm(range(CLASSES), desc="folder", unit="class"):
        folder = root / f"n{1_440_764 + 7919 * label:08}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.png"
        Image.new("RGB", (SIZE, SIZE), (label % 256, label // 256, 0)).save(first)
        for number in range(1, pictures // CLASSES):
            os.link(first, folder / f"{folder.name}_{number}.png")


def ours(root: str, workers: int) -> tuple[Callable[[], None], Callable[[], DataLoader]]:
    """Finds the pictures; then what looks at each, and what makes the loader."""
    data = ImageFolder(root, image_size=SIZE, batch_size=BATCH_SIZE, in_memory=False, num_workers=workers, seed=0)
    assert data.num_classes == CLASSES
    return data.prepare_data, data.train_dataloader


def torchvisions(root: str, workers: int) -> tuple[Callable[[], None], Callable[[], DataLoader]]:
    """The same of torchvision's."""
    data = torchvision.datasets.ImageFolder(root, Compose([Resize(SIZE), CenterCrop(SIZE), PILToTensor()]))
    settings = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": True}
    return lambda: None, partial(DataLoader, data, BATCH_SIZE, **settings)


def measure(of_torchvision: bool, root: str, workers: int, batches: int) -> dict[str, float]:
    """Find the pictures, look at them, and read so many batches, in this process and its workers; MB."""
    torch.set_num_threads(1)
    before = _resident()
    look, make_loader = (torchvisions if of_torchvision else ours)(root, workers)
    found = _resident() - before
    look()
    loader = make_loader()
    looked_at, peak = _resident() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    for _ in islice(chain.from_iterable(repeat(loader)), batches):  # epoch after epoch
        pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    own = [_own(child) for child in children]
    return {"found": found, "looked_at": looked_at, "peak": peak, "worker": sum(own) / len(own)}


def _resident() -> float:
    return _kilobytes("self", "Rss:") / 1e3


def _own(process: str) -> float:
    return (_kilobytes(process, "Private_Dirty:") + _kilobytes(process, "Private_Clean:")) / 1e3


def _kilobytes(process: str, name: str) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def page(results: dict[str, Any]) -> str:
    """The table."""
    columns = ["", "found", "looked at", "peak", "a worker"]
    parts = ("found", "looked_at", "peak", "worker")
    rows = [[name, *(f"{row[part]:,.0f} MB" for part in parts)] for name, row in results["rows"].items()]
    read_by = f"{results['workers']} workers after {results['batches']:,} batches of {BATCH_SIZE}"
    text = [
        "# The memory of a large folder",
        f"`python benchmarks/folder_memory.py`: {results['pictures']:,} pictures in {CLASSES:,} folders, read by "
        f"{read_by}. What a process takes when it has found them, when it has looked at each, and at most until then, "
        "and what each worker adds.",
        table(columns, rows),
        results["machine"],
    ]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=500, help="that are read, of 128 pictures")
    parser.add_argument("--name", default="ImageFolder", help="of ours in the table")
    options = parser.parse_args()
    subjects = {options.name: False, "torchvision.datasets.ImageFolder": True}
    rows = read("folder_memory").get("rows", {})
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        make_folder(large, options.pictures)
        make_folder(small, CLASSES)
        for name, of_torchvision in subjects.items():
            row, of_small = (
                alone(measure, of_torchvision, str(root), options.workers, options.batches) for root in (large, small)
            )
            rows[name] = row | {"worker": row["worker"] - of_small["worker"]}
    given = {name: getattr(options, name) for name in ("pictures", "workers", "batches")}
    results = given | {"machine": machine(), "rows": rows}
    write("folder_memory", results, page(results))


if __name__ == "__main__":
    main()
