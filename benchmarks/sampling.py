"""Time and FID of samples against network evaluations: ours by several samplers and step counts, and the peers.

    python benchmarks/sampling.py

Works on the models that ``quality.py`` has left in ``--folder``. Ours: Heun and DPM-Solver++ at several numbers of
steps, by FID, which tells how few evaluations suffice. Then every system draws by the sampler that is its best, in
turns of a small batch each, interleaved, so that a change of the machine's speed meets all alike; the median turn gives
the seconds for 1,000.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import race
import torch
from judging import fid, interleaved
from results import RESULTS, machine, table, write
from systems import SYSTEMS
from tqdm import tqdm

from diffusion_lightning import AutoPrecision, DPMSolverPlusPlus, Heun, Sampler, ScoreModule
from diffusion_lightning.images import to_uint8


def candidates() -> dict[str, Sampler]:
    """The samplers that are compared on our model, by name."""
    heun = {f"Heun, {steps} steps": Heun(steps=steps) for steps in (4, 6, 8, 9, 12, 18)}
    multistep = {f"DPM-Solver++(2M), {steps} steps": DPMSolverPlusPlus(steps) for steps in (6, 8, 10, 14, 17, 20, 35)}
    return heun | multistep


@torch.no_grad()
def tradeoff(path: Path, root: str, num: int) -> list[dict[str, Any]]:
    """FID and seconds of each of the samplers, from the same starts."""
    module, rows = ScoreModule.load_from_checkpoint(path), []
    labels = module.labels_in_shares(num)
    for name, sampler in tqdm(candidates().items(), desc="samplers", unit="sampler"):
        began = time.perf_counter()
        with AutoPrecision().forward_context():
            samples = module.sample(sampler, num, labels, torch.Generator().manual_seed(0), batch_size=250)
        seconds = time.perf_counter() - began
        rows.append({"sampler": name, "nfe": sampler.nfe, "seconds": seconds, "fid": fid(root, to_uint8(samples))})
    return rows


def page(results: dict[str, Any]) -> str:
    samplers = [
        [row["sampler"], row["nfe"], f"{row['fid']:.2f}", f"{row['seconds']:.1f} s"] for row in results["samplers"]
    ]
    ours = next(row["seconds"] for row in results["systems"] if row["system"] == "ours")
    systems = [
        [row["system"], f"{row['nfe']:.4g}", f"{row['seconds']:.1f} s", f"{row['seconds'] / ours:.1f}"]
        for row in results["systems"]
    ]
    num = f"{results['samples']:,}"
    return (
        f"# Samples: evaluations, time and FID\n\n`python benchmarks/sampling.py`, on the models of `quality.py`.\n\n"
        f"{table(['our model by', 'NFE', f'FID, {num} samples', f'time for {num}'], samplers)}\n\n"
        f"{table(['system', 'NFE', 'time for 1,000', 'over ours'], systems)}\n\n{results['machine']}"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for family in ("Heun", "DPM-Solver++(2M)"):
        rows = [row for row in results["samplers"] if row["sampler"].startswith(family + ",")]
        axes.plot([row["nfe"] for row in rows], [row["fid"] for row in rows], "o-", label=family)
    axes.set(xlabel="network evaluations of a sample", ylabel=f"FID, {results['samples']:,} samples", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of quality.py")
    parser.add_argument("--minutes", type=float, default=10, help="of the models' training, as given to quality.py")
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=50, help="of one turn of a system")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = {name: options.folder / f"{name}-{options.minutes:g}" for name in SYSTEMS}
    drawn_by = {
        name: (race.of_folder(folder)[-1], race.sampler_of(folder)["best"])
        for name, folder in folders.items()
        if "best" in race.sampler_of(folder)
    }
    if "ours" not in drawn_by:
        parser.error(f"--folder: {folders['ours']} is not there: run benchmarks/quality.py first")
    results = {
        "samples": options.samples,
        "machine": machine(),
        "samplers": tradeoff(drawn_by["ours"][0], options.root, options.samples),
        "systems": [
            {"system": name, "nfe": race.judged(folders[name])["evaluations"], "seconds": statistics.median(seconds)}
            for name, seconds in interleaved(
                options.root, drawn_by, options.batch_size, options.turns, options.threads
            ).items()
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    plot(results, RESULTS / "sampling.png")
    write("sampling", results, page(results))


if __name__ == "__main__":
    main()
