"""A race on digits: this framework beside what people would otherwise pick, like for like, in minutes of training.

    python benchmarks/quality.py --root data                        # everyone; hours
    python benchmarks/quality.py --systems ours,azula-classes       # some; the others stay in the table
    python benchmarks/quality.py --systems azula --until azula      # and how long it needs to our five-minute figure

Without classes and with them, each peer as its own documentation sets it and, where its API allows, once more by our
training. ``pace.py`` turns minutes into steps; ``race.py`` trains, in parts that an interruption leaves whole;
``judging.py`` finds each one's best sampler and says what the samples are worth; ``until.py`` trains on;
``quality_page.py`` makes the page. What a run has measured, trained and drawn is kept in ``--folder`` and not done
again.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import judging
import pace
import race
import torch
import until
from alone import alone
from quality_page import page, plot
from results import RESULTS, read, write
from systems import SYSTEMS
from systems.base import classes, digits

from diffusion_lightning.randomness import draw_some


def floor(root: str, num: int, threads: int) -> dict[str, Any]:
    """What as many real test digits are worth, drawn at random: the set's first half was written more neatly."""
    torch.set_num_threads(threads)
    images = digits(root, train=False)
    chosen = draw_some(num, len(images), seed=0)
    return judging.measure(root, images[chosen], asked=classes(root, train=False)[chosen])


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each system")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, by commas; all if left out")
    parser.add_argument(
        "--until", default="", help="of these: train on until they are as good as ours at half the time"
    )
    parser.add_argument("--limit", type=float, default=60, help="minutes after which --until gives up")
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--samples", type=int, default=1000, help="that a system is judged by")
    parser.add_argument("--trials", type=int, default=500, help="samples by which its best sampler is found")
    parser.add_argument("--turns", type=int, default=5, help="in which a system's speed is measured beside ours")
    parser.add_argument("--seconds", type=float, default=6, help="of such a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of everything but the results")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the page, the figures and the pictures"
    )
    options = parser.parse_args(given)
    for option in ("systems", "until"):
        names = [name for name in getattr(options, option).split(",") if name]
        if unknown := sorted(set(names) - set(SYSTEMS)):
            parser.error(f"--{option}: {', '.join(unknown)}: must be among {', '.join(SYSTEMS)}")
        setattr(options, option, names)
    for option in ("minutes", "limit", "samples", "trials", "turns", "seconds", "threads"):
        if not (value := getattr(options, option)) > 0:
            parser.error(f"--{option} {value:g}: must be positive")
    return options


def main() -> None:
    options = parse()
    root, threads, minutes = options.root, options.threads, options.minutes
    kept = options.folder / "pace.json"
    rates = pace.measure(kept, options.systems, root, threads, options.seconds, options.turns)
    folders = {name: options.folder / f"{name}-{minutes:g}" for name in SYSTEMS}
    for name in options.systems:
        steps = race.marks(minutes, rates[name])
        race.train(name, root, steps, steps[-1], threads, race.of_folder(folders[name]))
    for name in options.systems:
        race.judge(name, root, options.samples, threads, folders[name], options.trials)
    for name in options.systems:
        race.time_drawing(name, root, threads, folders)
    results = _earlier(options)
    results["floor"] = alone(floor, root, options.samples, threads)
    measured = json.loads(kept.read_text())
    results["pace"] = {"ours": rates[pace.ANCHOR], "turns": measured["turns"], "seconds": measured["seconds"]}
    for name in options.systems:
        results["systems"][name] = race.collect(name, rates[name], folders[name])
        options.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(race.of_folder(folders[name])[-1].with_suffix(".png"), options.results / f"quality_{name}.png")
    results["systems"] = {name: results["systems"][name] for name in SYSTEMS if name in results["systems"]}
    drawing = folders[pace.ANCHOR] / "drawing.json"
    if drawing.is_file():
        results["seconds_of_ours"] = statistics.median(json.loads(drawing.read_text())["seconds_of_ours"])
    _write(results, options.results)
    for name in options.until:
        if missing := [each for each in (name, until.rival(name)) if each not in results["systems"]]:
            raise SystemExit(f"--until {name}: {', '.join(missing)} must have raced before, by --systems")
        found = until.search(name, root, minutes, options.limit, rates[name], options.samples, threads, folders)
        results["until"][name] = found
        _write(results, options.results)


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    """What an earlier race of the same kind has left, or nothing yet."""
    kind = {"minutes": options.minutes, "samples": options.samples, "threads": options.threads}
    kind["features"] = list(judging.KNOWN)
    results = read("quality", options.results)
    if {name: results.get(name) for name in kind} == kind:
        return results
    return {**kind, "systems": {}, "until": {}, "seconds_of_ours": None}


def _write(results: dict[str, Any], folder: Path) -> None:
    plot(results, folder / "quality.png")
    write("quality", results, page(results), folder)


if __name__ == "__main__":
    main()
