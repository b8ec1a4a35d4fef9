"""Images per second: this framework beside a bare loop and other libraries, and what its options cost and gain.

    python benchmarks/throughput.py --root data
    python benchmarks/throughput.py --recipe cifar10 --device cuda --batch_size 512

One process trains configs/mnist.yaml by ``lightning fit``, and between blocks of its steps lets the others train: the
same recipe in a bare PyTorch loop, diffusers' U-Net of equal depth and weights in that loop, and the systems of
benchmarks/systems, each as its own documentation recommends. Every block is compared with the one of ours just before
it. Of the same fit come the share of a step that the EMA takes, that of waiting for data, and how much of the device's
measured matrix rate is reached. A second process lets variants of the bare loop take turns: float32, bf16, a compiled
network, activation checkpointing, channels last in memory, and cuDNN's algorithms chosen by trial. Their memory is by
how much their steps raise the peak: of a process of its own, on a GPU of what PyTorch allocates there, activations,
gradients and the optimizer's state.

``--recipe cifar10`` is configs/cifar10.yaml as a GPU takes it best: bf16, compiled, a fused optimizer, the images
(noise) on the device; beside it the bare loop, and diffusers' equal U-Net. ``--shrink 8`` divides our channels and
batch, so that any machine can run it.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from alone import alone
from alternation import BARE, EQUAL, WARM_UP, Training, block, quartiles, synchronize
from bare_loop import BareLoop
from recipes import BATCH_SIZE, RECIPES, arguments, build
from results import RESULTS, machine, table, write
from systems import DOCUMENTED
from tqdm import tqdm

from diffusion_lightning.callbacks.performance import peak_memory_gb
from diffusion_lightning.commands.lightning_cli import DiffusionCLI
from diffusion_lightning.training.bf16 import has_bf16_units

CHOICES = {"mnist": (EQUAL, *DOCUMENTED), "cifar10": (EQUAL,)}
"""Which systems go with a recipe."""

PACKAGES = {
    EQUAL: "diffusers",
    "diffusers": "diffusers",
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
    "azula": "azula",
}

VARIANTS = ("float32", "bf16", "compiled", "checkpointing", "channels_last", "autotuned")


def contest(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours and the others in turn."""
    _prepare(options)
    path = folder / "turns.json"
    turns = {"names": [BARE, *options.systems], "root": options.root, "path": str(path)}
    turns |= {"seconds": options.seconds, "rounds": options.rounds}
    callbacks = [{"class_path": "alternation.Alternation", "init_args": turns}]
    profiler = {"class_path": "SimpleProfiler", "init_args": {"dirpath": str(folder), "filename": "profile"}}
    DiffusionCLI(
        [
            *(
                "fit",
                *_arguments(options, folder),
                f"--model.compile={options.compile and options.recipe == 'cifar10'}",
            ),
            *(f"--trainer.callbacks={json.dumps(callbacks)}", f"--trainer.profiler={json.dumps(profiler)}"),
        ]
    )
    return json.loads(path.read_text()) | {"machine": machine()}


def vary(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """The variants in turn; the first one is that which the others are compared with."""
    _prepare(options)
    device = torch.device(options.device)
    trainings, first_step, raised = {}, {}, {}
    for name in tqdm(options.variants, desc="first steps", unit="variant"):
        loop = _variant(name, options, folder)
        step = partial(_step, loop, name == "autotuned")
        before = _only_now(device)
        began = time.perf_counter()
        step()
        synchronize(device)
        first_step[name] = time.perf_counter() - began
        for _ in range(WARM_UP):
            step()
        raised[name] = None if before is None else (peak_memory_gb(device) or 0.0) - before
        trainings[name] = Training(step, loop.batch_size, sum(p.numel() for p in loop.parameters), name)
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    with tqdm(total=options.rounds * len(trainings), desc="variants in turn", unit="block") as bar:
        for _ in range(options.rounds):
            for name, training in trainings.items():
                rates[name].append(block(training, options.seconds, device))
                bar.update()
    return {
        name: {
            "images_per_s": quartiles(rates[name]),
            "over_first": quartiles([a / b for a, b in zip(rates[name], rates[options.variants[0]], strict=True)]),
            "first_step_seconds": first_step[name],
            "memory_gb": raised[name],
        }
        for name in trainings
    }


def _only_now(device: torch.device) -> float | None:
    """Begin to look for the peak anew, and say where it begins; None on a CPU, where it is the process's for ever."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 1e9


def memory(name: str, options: argparse.Namespace, folder: Path) -> float:
    """By how many 10⁹ bytes the steps of a variant raise the peak of this process."""
    _prepare(options)
    device = torch.device(options.device)
    loop = _variant(name, options, folder)
    before = peak_memory_gb(device) or 0.0
    for _ in range(WARM_UP):
        _step(loop, name == "autotuned")
    synchronize(device)
    return (peak_memory_gb(device) or 0.0) - before


def _variant(name: str, options: argparse.Namespace, folder: Path) -> BareLoop:
    given = [*_arguments(options, folder), "--model.compile=false"]
    if name == "checkpointing":
        given.append("--model.network.init_args.checkpointing=true")
    module, data = build(given)
    if name == "channels_last":  # in which the weights are, a convolution's output is
        module.network.to(memory_format=torch.channels_last)
    precision = name if name in ("float32", "bf16") else options.precision
    return BareLoop(
        module, data, module.network, torch.device(options.device), precision == "bf16", compile=name == "compiled"
    )


def _step(loop: BareLoop, autotune: bool) -> None:
    torch.backends.cudnn.benchmark = autotune
    loop.step()


def _prepare(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sys.argv = sys.argv[:1]  # these are this command's own, of which LightningCLI would warn


def _arguments(options: argparse.Namespace, folder: Path) -> list[str]:
    return arguments(options.recipe, options.root, folder, options.device, options.batch_size, options.shrink)


def compare(contested: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A row for each system, from the turns of all."""
    turns, ours = contested["turns"], {key: contested[key] for key in ("batch_size", "weights")}
    settings = "the recipe by lightning fit, with logging, EMA, checkpoints and report"
    rates = quartiles([turn["ours"] for turn in turns])
    rows = {"ours": ours | {"settings": settings, "images_per_s": rates, "ours_over_it": [1.0] * 3}}
    for name, other in contested["others"].items():
        own = [turn for turn in turns if turn["name"] == name]
        rows[name] = other | {
            "images_per_s": quartiles([turn["rate"] for turn in own]),
            "ours_over_it": quartiles([turn["ours"] / turn["rate"] for turn in own]),
        }
    return rows


def page(results: dict[str, Any]) -> str:
    """The tables, and how every system is set."""
    systems, on_gpu = results["systems"], results["device"] == "cuda"
    rows = []
    for name, row in systems.items():
        rate, ratio = f"{row['images_per_s'][1]:,.0f}", _spread(row["ours_over_it"])
        rows.append([name, f"{row['weights'] / 1e6:.2f} M", row["batch_size"], rate, ratio])
    over_bare = [1 / ratio for ratio in reversed(systems[BARE]["ours_over_it"])]
    figures = [
        ["a step over one of the bare loop", _spread(over_bare), "≤ 1.10" if on_gpu else "≤ 1.03"],
        ["update of the EMA, of a step", f"{results['ema_share'][1]:.2%}", "≤ 2 %"],
        ["waiting for data, of all time", f"{results['waiting_share']:.2%}", "< 1 %"],
        ["forward and backward pass of an image", f"{results['flop_per_image'] / 1e9:.3f} GFLOP", ""],
        [f"product of large {results['precision']} matrices", f"{results['matrix_rate'] / 1e12:.2f} TFLOP/s", ""],
        ["reached of that", f"{results['matrix_share']:.1%}", ""],
    ]
    if EQUAL in systems:
        ratio = _spread(systems[EQUAL]["ours_over_it"])
        figures.append(["images/s over those with diffusers' equal U-Net", ratio, "≥ 1.5" if on_gpu else ""])
    parts = [
        f"# Throughput of {results['recipe']}",
        f"`{results['command']}`: {results['rounds']} blocks of {results['seconds']:g} s of each system, in turn; "
        "medians, and quartiles in brackets.",
        table(["system", "weights", "batch", "images/s in training", "ours over it"], rows),
        table(["of the same fit", "measured", "goal"], figures),
    ]
    if results["variants"]:
        parts += [f"The bare loop, in {results['precision']} unless it says otherwise:", _variants_table(results)]
    parts += ["\n".join(f"- **{name}**: {row['settings']}." for name, row in systems.items()), results["machine"]]
    return "\n\n".join(parts)


def _variants_table(results: dict[str, Any]) -> str:
    rows = []
    for name, row in results["variants"].items():
        gigabytes = "" if row["memory_gb"] is None else f"{row['memory_gb']:.2f} GB"
        rate, seconds = f"{row['images_per_s'][1]:,.0f}", f"{row['first_step_seconds']:.1f} s"
        rows.append([name, rate, _spread(row["over_first"]), gigabytes, seconds])
    first = next(iter(results["variants"]))
    return table(["variant", "images/s in training", f"over {first}", "memory", "first step"], rows)


def _spread(ratios: list[float]) -> str:
    low, median, high = (f"{ratio:.2f}" for ratio in ratios)
    return median if low == high else f"{median} ({low}–{high})"


def plot(results: dict[str, Any], path: Path) -> None:
    panels = {"systems": results["systems"], "variants of the bare loop": results["variants"]}
    panels = {title: rows for title, rows in panels.items() if rows}
    heights = [len(rows) for rows in panels.values()]
    size = 7, 1.1 * len(panels) + 0.36 * sum(heights)
    figure, axes = plt.subplots(len(panels), figsize=size, height_ratios=heights, layout="constrained", squeeze=False)
    for panel, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        low, median, high = torch.tensor([row["images_per_s"] for row in rows.values()]).T.numpy()
        colors = ["C0" if name == "ours" else "C7" for name in rows]
        panel.barh(list(rows), median, xerr=[median - low, high - median], color=colors, height=0.7)
        panel.invert_yaxis()
        panel.set(xlabel="images/s in training", title=f"{results['recipe']}: {title}")
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The options, checked; exits with one line if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="mnist")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--systems", help="names, by commas; all that go with the recipe if left out, '' for none")
    parser.add_argument("--variants", help="names, by commas; all that go with the device if left out, '' for none")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="compile nothing")
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a block")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each")
    parser.add_argument("--shrink", type=int, default=1, help="divide channels and batch by this")
    parser.add_argument("--batch_size", type=int, help=f"images per step of ours; {BATCH_SIZE} if left out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    choices = CHOICES[options.recipe]
    options.systems = list(choices) if options.systems is None else _names(options.systems)
    fitting = [name for name in VARIANTS if name != "autotuned" or options.device == "cuda"]  # cuDNN is a GPU's
    options.variants = fitting if options.variants is None else _names(options.variants)
    for option, known in (("systems", choices), ("variants", fitting)):
        if unknown := [name for name in getattr(options, option) if name not in known]:
            parser.error(f"--{option}: {', '.join(unknown)}: with --recipe {options.recipe}, among {', '.join(known)}")
    if missing := [name for name in options.systems if name in PACKAGES and find_spec(PACKAGES[name]) is None]:
        parser.error(f"--systems: {', '.join(missing)}: not installed: pip install 'diffusion-lightning[bench]'")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda: PyTorch finds no GPU here")
    if options.device == "cuda" and set(options.systems) - {EQUAL}:
        parser.error(f"--systems: on a GPU only {EQUAL}: the others are set for a CPU")
    options.batch_size = options.batch_size or max(1, BATCH_SIZE // options.shrink)
    options.precision = "bf16" if has_bf16_units(options.device) else "float32"
    if not options.compile:
        options.variants = [name for name in options.variants if name != "compiled"]
    if options.variants:
        others = [name for name in options.variants if name != options.precision]
        options.variants = [options.precision, *others]
    return options


def _names(given: str) -> list[str]:
    return [name for name in given.split(",") if name]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        contested = alone(contest, options, folder)
        varied = alone(vary, options, folder) if options.variants else {}
        # a compiler's own memory would be in it
        open_ones = [name for name in varied if varied[name]["memory_gb"] is None and name != "compiled"]
        for name in tqdm(open_ones, desc="memory of variants", unit="variant", disable=not open_ones):
            varied[name]["memory_gb"] = alone(memory, name, options, folder)
    systems = compare(contested)
    measured = ("ema_share", "waiting_share", "flop_per_image", "matrix_rate", "machine")
    results = {
        **{key: getattr(options, key) for key in ("recipe", "device", "precision", "seconds", "rounds")},
        **{key: contested[key] for key in measured},
        "command": f"python benchmarks/throughput.py --recipe {options.recipe} --device {options.device}",
        "matrix_share": systems["ours"]["images_per_s"][1] * contested["flop_per_image"] / contested["matrix_rate"],
        "systems": systems,
        "variants": varied,
    }
    name = f"throughput_{options.recipe}_{options.device}" + "_small" * (options.shrink > 1)
    write(name, results, page(results), options.output)
    plot(results, options.output / f"{name}.png")


if __name__ == "__main__":
    main()
