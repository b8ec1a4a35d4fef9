"""The page of the race: like beside like, in tables and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from race import SHARES
from results import table
from systems import PARTS


def page(results: Mapping[str, Any]) -> str:
    """Everything in words and tables; systems that have not raced are left out."""
    rows, features = results["systems"], results["features"]
    parts = [_introduction(results)]
    for part, names in PARTS.items():
        present = {name: rows[name] for name in names if name in rows}
        if present:
            parts += [f"## {part.capitalize()}", _final(present, results), _on_the_way(present, results)]
            parts += [f"- **{name}**: {row['settings']}." for name, row in present.items()]
    if until := results.get("until"):
        parts += ["## Until they are as good as ours at half the time", _until(until, features[-1])]
    parts += ["## Which sampler is each one's best", _samplers(rows, features[-1])]
    parts += sorted({row["machine"] for row in rows.values()})
    return "\n\n".join(parts).replace(".\n\n- **", ".\n- **")


def _introduction(results: Mapping[str, Any]) -> str:
    features, floor = results["features"], results["floor"]
    real = " and ".join(f"{floor['fid'][name]:.2f} by `{name}`" for name in features)
    others = ""
    if len(features) > 1:
        others = f", then by the older `{'`, `'.join(features[:-1])}`"
    return (
        f"# Quality against minutes of training\n\n`python benchmarks/quality.py`: MNIST, {results['samples']:,} "
        f"samples of each. FID in the features `{features[-1]}`{others}, against the 60,000 training digits: as many "
        f"real test digits have {real}. Legible are samples whose most likely class has p ≥ 0.9 (real: "
        f"{floor['legible']:.1%}); "
        f"as asked, those that are read as the class that they were to be (real: {floor['agreement']:.1%}). "
        "Evaluations are counted for each sample, those of guidance too.\n\n"
        f"Minutes are counted in optimizer steps: every system trained in turn with ours, each in a process of its own "
        f"with {results['threads']} thread{'s' if results['threads'] > 1 else ''}, {results['pace']['turns']} turns of "
        f"{results['pace']['seconds']:g} seconds; a minute of one is 60 times ours' steps a second, which were "
        f"{results['pace']['ours']:.2f}, times the median of its ratios to ours beside it. Then each made as many "
        "steps as its minutes have, and the learning rates' schedules knew how many. Images/s are by that rate, and "
        "seconds for 1,000 samples were measured in turns with ours likewise."
    )


def _final(rows: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    features = results["features"]
    columns = ["system", "weights", "steps", "images/s", "sampler", "evaluations"]
    columns += [f"FID `{name}`" for name in reversed(features)] + ["legible", "as asked", "1,000 samples", "memory"]
    cells = [
        [
            name,
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['steps'][-1]:,}",
            f"{row['images_per_s']:.0f}",
            row["sampler"],
            f"{row['evaluations']:.4g}",
            *(f"{row['fid'][feature][-1]:.1f}" for feature in reversed(features)),
            f"{row['legible'][-1]:.1%}",
            "" if row["agreement"] is None else f"{row['agreement'][-1]:.1%}",
            _seconds(row["drawing"], results["seconds_of_ours"]),
            f"{row['training_memory_gb']:.2f} / {row['sampling_memory_gb']:.2f} GB",
        ]
        for name, row in rows.items()
    ]
    return f"After {results['minutes']:g} minutes; memory in training / drawing:\n\n{table(columns, cells)}"


def _seconds(drawing: Mapping[str, Any] | None, of_ours: float | None) -> str:
    return "–" if drawing is None or of_ours is None else f"{drawing['over_ours'] * of_ours:.1f} s"


def _on_the_way(rows: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    columns = ["system", *(f"{results['minutes'] * share:g} min" for share in SHARES)]
    cells = [
        [name, *(_mark(row, mark, results["features"]) for mark in range(len(SHARES)))] for name, row in rows.items()
    ]
    names = " / ".join(f"FID `{name}`" for name in reversed(results["features"]))
    asked = ", as asked" if any(row["agreement"] for row in rows.values()) else ""
    return f"On the way, {names}, legible{asked}:\n\n{table(columns, cells)}"


def _mark(row: Mapping[str, Any], mark: int, features: list[str]) -> str:
    fids = " / ".join(f"{row['fid'][feature][mark]:.1f}" for feature in reversed(features))
    shares = [row["legible"][mark], *([row["agreement"][mark]] if row["agreement"] else [])]
    return ", ".join([fids, *(f"{share:.0%}" for share in shares)])


def _until(until: Mapping[str, Any], feature: str) -> str:
    cells = [
        [
            name,
            f"{row['target']:.1f}",
            f"more than {row['limit']:g} min" if row["minutes"] is None else f"{row['minutes']:g} min",
            ", ".join(f"{minutes:g} min {value:.1f}" for minutes, value in row["at"]),
        ]
        for name, row in until.items()
    ]
    return (
        f"Where the learning rate falls by a schedule, each length is a training of its own.\n\n"
        f"{table(['system', f'FID `{feature}` to reach', 'reached after', 'judged'], cells)}"
    )


def _samplers(rows: Mapping[str, Any], feature: str) -> str:
    cells = [
        [name, sampler, f"{tried['evaluations']:.4g}", f"{tried['fid']:.1f}", "✓" if sampler == row["sampler"] else ""]
        for name, row in rows.items()
        for sampler, tried in sorted(row["samplers"].items(), key=lambda item: item[1]["fid"])
    ]
    if not cells:
        return "Ours draw by their recipe."
    return (
        "Tried on what each has at the end, on other samples than those it is judged by; ours draw by their recipe.\n\n"
        f"{table(['system', 'sampler', 'evaluations', f'FID `{feature}`', 'best'], cells)}"
    )


def plot(results: Mapping[str, Any], path: Path) -> None:
    """FID by the newest features against minutes, a panel for each part."""
    feature = results["features"][-1]
    figure, axes = plt.subplots(1, len(PARTS), figsize=(13, 4.6), sharey=True, layout="constrained")
    minutes = [results["minutes"] * share for share in SHARES]
    for panel, (part, names) in zip(axes, PARTS.items(), strict=True):
        for name in names:
            if name in results["systems"]:
                style = "o--" if name.endswith("our-training") else "o-"
                width = 2.5 if name == names[0] else 1.5
                colour = f"C{_library(name)}"
                fids = results["systems"][name]["fid"][feature]
                panel.plot(minutes, fids, style, color=colour, label=name, linewidth=width)
        panel.axhline(results["floor"]["fid"][feature], color="gray", linestyle=":", label="real test digits")
        panel.set(title=part, xlabel="minutes of training", xscale="log", yscale="log")
        panel.set_xticks(minutes, [f"{tick:g}" for tick in minutes])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    axes[0].set_ylabel(f"FID {feature}, {results['samples']:,} samples")
    figure.savefig(path, dpi=130)
    plt.close(figure)


LIBRARIES = ("ours", "document5", "diffusers", "denoising-diffusion-pytorch", "azula")


def _library(name: str) -> int:
    """The number of the library that a system is of: one colour each."""
    return next(number for number, library in enumerate(LIBRARIES) if name.startswith(library))
