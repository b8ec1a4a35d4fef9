"""What a Fréchet distance sees: graded damages of real digits, in the features of several networks.

    python benchmarks/yardstick.py --root data

1,000 test digits against the 60,000 training digits. Their distance has a mean and a standard deviation over draws of
other test digits; every damage (``digit_damages.py``) is then told in these deviations above that mean. Features are
good if each damage's distance rises from grade to grade, and is beyond three deviations already at the first.

``--features`` are names of the package's, or modules by their path, ``my.module.Network``: uint8 images
(N, 1, 28, 28) → features (N, F). ``--early`` is a checkpoint of a model that has hardly learnt to draw digits; left
out, the quickstart is trained for two epochs, and kept in ``--folder``. ``--models name=checkpoint`` are judged too.
"""

import argparse
import importlib
import itertools
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from digit_damages import PICTURES, REPLACED, SETS, Damage, damaged
from results import RESULTS, machine, table, write
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST

from diffusion_lightning import AutoPrecision, ClassifierFreeGuidance
from diffusion_lightning.images import to_uint8
from diffusion_lightning.metrics.agreement import Agreement, tally
from diffusion_lightning.metrics.evaluation import frechet_distance
from diffusion_lightning.metrics.features import FEATURES, build_features, extract_features
from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.randomness import draw_some
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.trained import TrainedModel

BATCH = 500
REPEATS = 5
"""How often the damages of sets are done, each time to other digits: another class, another picture. Means are told."""

ENOUGH = 3
"""Standard deviations beyond which a damage is seen."""

REAL, EARLY = "real digits", "an early epoch"

SHOWN = 14
"""Digits in a panel of the picture."""


def real_distances(features: Tensor, reference: Moments, num: int, draws: int) -> list[float]:
    """Those of draws of ``num`` undamaged digits, of features (N, F)."""
    chosen = (draw_some(num, len(features), seed) for seed in range(1, draws + 1))
    return [frechet_distance(features[index], reference) for index in chosen]


def picture_distances(network: nn.Module, reference: Moments, images: Tensor, seed: int = 0) -> dict[str, list[float]]:
    """Of uint8 images (N, 1, 28, 28), at each grade of each damage that changes all."""

    def distance(name: str, grade: float) -> float:
        features = extract_features(network, damaged(name, grade, images, seed).split(BATCH))
        return frechet_distance(features, reference)

    return {name: [distance(name, grade) for grade in damage.grades] for name, damage in PICTURES.items()}


def set_distances(
    features: Tensor, labels: Tensor, reference: Moments, num: int, others: Tensor | None = None
) -> dict[str, list[float]]:
    """Of ``num`` of the features (N, F) of digits, at each grade of each damage of a set; their means over `REPEATS`.

    Args:
        features: of undamaged digits, (N, F).
        labels: theirs, (N,).
        reference: of the real side.
        num: how many.
        others: features of what replaces some of them; None: nothing does.
    """
    orders = [draw_some(len(features), len(features), seed) for seed in range(REPEATS)]

    def distance(name: str, grade: float) -> float:
        found = []
        for seed, order in enumerate(orders):
            generator = torch.Generator().manual_seed(seed)  # the same class, and the same picture, at every grade
            rows = SETS[name].apply(features[order], labels[order], num, grade, generator)
            found.append(frechet_distance(rows, reference))
        return statistics.mean(found)

    distances = {name: [distance(name, grade) for grade in damage.grades] for name, damage in SETS.items()}
    if others is not None:
        distances["replaced"] = [
            statistics.mean(
                frechet_distance(REPLACED.apply(features[order], others, num, grade), reference) for order in orders
            )
            for grade in REPLACED.grades
        ]
    return distances


def seen(distances: Sequence[float], real: Sequence[float]) -> list[float]:
    """Distances in standard deviations above the mean of real digits' own."""
    mean, deviation = statistics.mean(real), statistics.stdev(real)
    return [(distance - mean) / deviation for distance in distances]


def faults(deviations: Sequence[float]) -> str:
    """What features fail to see of a damage, in words; empty if nothing."""
    found = []
    if deviations[0] < ENOUGH:
        found.append(f"first within {ENOUGH} sd")
    if any(later <= earlier for earlier, later in itertools.pairwise(deviations)):
        found.append("does not rise")
    return ", ".join(found)


def judge(
    name: str, real: Tensor, test: Tensor, labels: Tensor, drawn: dict[str, Tensor], num: int, draws: int
) -> dict[str, Any]:
    """All distances in the features of one network; of what models have drawn also the share that it can read."""
    network = build_features(name)[1] if name in FEATURES else by_path(name)
    reference = Moments.of(extract_features(network, real.split(BATCH)))
    features = extract_features(network, test.split(BATCH))
    samples = {what: extract_features(network, images.split(BATCH)) for what, images in drawn.items()}
    damages = picture_distances(network, reference, test[draw_some(num, len(test), seed=0)])
    damages |= set_distances(features, labels, reference, num, samples[EARLY])
    return {
        "real": real_distances(features, reference, num, draws),
        "damages": damages,
        "drawn": {what: frechet_distance(rows, reference) for what, rows in samples.items()},
        "legible": {what: legible(network, rows) for what, rows in {REAL: features, **samples}.items()},
    }


def legible(network: nn.Module, features: Tensor) -> float | None:
    """The share of pictures that the network can read; None of one that reads none."""
    if not hasattr(network, "logits"):
        return None
    return Agreement.of(tally(network.logits(features)), asked=False).shares["legible"]


def by_path(path: str) -> nn.Module:
    """A network of one's own, by the path of its class or of the function that makes it."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)()


def early_checkpoint(folder: Path) -> Path:
    """The quickstart after two epochs, trained if it is not in the folder."""
    checkpoint = folder / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        config = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
        options = ["--trainer.max_epochs=2", "--trainer.callbacks=[]", "--trainer.logger=false"]
        command = [sys.executable, "-m", "diffusion_lightning", "fit", "--config", str(config), *options]
        subprocess.run([*command, f"--trainer.default_root_dir={folder}"], check=True)
    return checkpoint


def samples(checkpoint: Path, num: int, guidance: GuidanceChoice = None) -> Tensor:
    """What a model draws, uint8 (num, 1, 28, 28), the classes in the data's shares."""
    model = TrainedModel.load(checkpoint)
    generator = torch.Generator().manual_seed(0)
    with AutoPrecision().forward_context(), torch.no_grad():
        x = model.sample(num=num, labels=model.labels_in_shares(num), generator=generator, guidance=guidance)
    return to_uint8(x)


def drawn_by(checkpoints: Sequence[str], num: int) -> dict[str, Tensor]:
    """What models draw, each unguided, guided and told no class: of ``name=checkpoint``."""
    ways = {"": None, ", guided by 1.4": 1.4, ", told no class": 0.0}
    return {
        f"{name}{way}": samples(
            Path(path), num, None if weight is None else partial(ClassifierFreeGuidance, weight=weight)
        )
        for name, path in (each.split("=", 1) for each in checkpoints)
        for way, weight in ways.items()
    }


def damages() -> dict[str, Damage]:
    """All of them, by their names, in the order of the table."""
    return {**PICTURES, **SETS, "replaced": REPLACED}


def page(results: dict[str, Any]) -> str:
    """The tables: every damage by grade, in deviations of real digits' own, and what is not seen."""
    features = results["features"]
    real = [f"{statistics.mean(each['real']):.2f} ± {statistics.stdev(each['real']):.2f}" for each in features.values()]
    rows = [[REAL, f"{results['draws']} draws", *real]]
    for damage, (_, unit, grades) in damages().items():
        columns = [_cells(each["damages"][damage], each["real"]) for each in features.values()]
        for place, grade in enumerate(grades):
            rows.append([damage if place == 0 else "", f"{grade:g} {unit}", *(column[place] for column in columns)])
    drawn = [[REAL, *(f"{real[n]}{_read(each, REAL)}" for n, each in enumerate(features.values()))]]
    for what in next(iter(features.values()))["drawn"]:
        cells = [_cells([each["drawn"][what]], each["real"], remarks=False)[0] for each in features.values()]
        drawn.append([what, *(cell + _read(each, what) for cell, each in zip(cells, features.values(), strict=True))])
    columns = [f"in `{name}`" for name in features]
    return (
        f"# What the distance sees\n\n`python benchmarks/yardstick.py`: Fréchet distances of {results['samples']:,} "
        f"damaged test digits to the 60,000 training digits, and how many standard deviations of real digits' own they "
        f"are above the mean of those.\n\n![Each damage by its grades](yardstick.png)\n\n"
        f"{table(['damage', 'grade', *columns], rows)}\n\n"
        f"The same of what models draw, and the share that the features' own classifier can read:\n\n"
        f"{table(['drawn by', *columns], drawn)}\n\n{results['machine']}"
    )


def _cells(distances: Sequence[float], real: Sequence[float], remarks: bool = True) -> list[str]:
    """Each distance, in deviations too; at the first what is not seen."""
    deviations = seen(distances, real)
    cells = [f"{each:.2f} ({sd:.1f} sd)" for each, sd in zip(distances, deviations, strict=True)]
    remark = faults(deviations) if remarks else ""
    return [f"{cells[0]} – {remark}", *cells[1:]] if remark else cells


def _read(results: dict[str, Any], what: str) -> str:
    share = results["legible"][what]
    return "" if share is None else f", {share:.1%} legible"


def plot(test: Tensor, early: Tensor, path: Path) -> None:
    """A row for each damage of the pictures, its grades side by side; below undamaged ones and samples."""
    chosen = test[draw_some(SHOWN, len(test), seed=0)]
    rows = {
        f"{name}: {', '.join(f'{grade:g}' for grade in damage.grades)} {damage.unit}": [
            damaged(name, grade, chosen, 0) for grade in damage.grades
        ]
        for name, damage in PICTURES.items()
    }
    rows[f"undamaged; {EARLY}"] = [chosen, early[:SHOWN]]
    figure, axes = plt.subplots(len(rows), 1, figsize=(13, 1.25 * len(rows)), layout="constrained")
    for axis, (title, grades) in zip(axes, rows.items(), strict=True):
        panels = [
            F.pad(
                torch.cat([torch.cat(list(half), dim=1) for half in digits[:, 0].split(SHOWN // 2)]), (0, 8), value=99
            )
            for digits in grades
        ]
        picture = torch.cat(panels, dim=1)
        axis.imshow(
            F.pad(picture, (0, 4 * panels[0].shape[1] - picture.shape[1]), value=255).numpy(),
            cmap="gray",
            interpolation="nearest",
        )
        axis.set_axis_off()
        axis.set_title(title, fontsize=9, loc="left")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--features", default="mnist,digits", help="names or paths, by commas")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=20, help="of real digits")
    parser.add_argument("--early", type=Path, help="checkpoint of an early epoch")
    parser.add_argument(
        "--models", nargs="*", default=[], help="name=checkpoint, of models with classes and dropout of them"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/yardstick"))
    options = parser.parse_args()
    names = options.features.split(",")
    if unknown := [name for name in names if name not in FEATURES and "." not in name]:
        parser.error(
            f"--features: {', '.join(unknown)}: must be among {', '.join(FEATURES)}, or a path such as my.Network"
        )
    real, test = (MNIST(options.root, train=train) for train in (True, False))
    images = test.data[:, None]
    early = samples(options.early or early_checkpoint(options.folder), options.samples)
    drawn = {EARLY: early, **drawn_by(options.models, options.samples)}
    results = {"samples": options.samples, "draws": options.draws, "machine": machine(), "features": {}}
    for name in names:
        results["features"][name] = judge(
            name, real.data[:, None], images, test.targets, drawn, options.samples, options.draws
        )
    plot(images, early, RESULTS / "yardstick.png")
    write("yardstick", results, page(results))


if __name__ == "__main__":
    main()
