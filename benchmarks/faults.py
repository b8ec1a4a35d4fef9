"""Kills trainings at random moments and resumes them, damages their checkpoints, and counts the bits that differ.

    python benchmarks/faults.py

The trainings are the tiny runs of tests/reliability by the real command: fifteen steps in three epochs with validation,
pictures, dropout and a checkpoint every other step. A moment is drawn uniformly from the time between a run's start and
its end; then the process and those it launched get SIGKILL, and the run is resumed, five times at most. What differs is
counted over the final weights of the network and of the EMA, the optimizer's state, the logged losses and the pictures,
each compared with those of a run that nothing interrupted.

A damaged checkpoint is survived if the damage is seen and the one before it is found to resume from, or if it is read
as it was before; the bits that differ are those of what was read.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from diffusion_lightning.progress import progress_bar
from diffusion_lightning.training.checkpoint_file import load_checkpoint, load_newest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "reliability"))

from damages import DAMAGES
from hurt_runs import PARTS, Command, checkpoint, last_values, leaves, make_command

KILLS_PER_RUN = 5


def wait_for_training(command: Command, process: subprocess.Popen[str]) -> None:
    """Until the run has written its config, just before its first step, or has ended."""
    began = time.time()
    while process.poll() is None:
        if any(path.stat().st_mtime > began for path in command.runs.glob("*/config.yaml")):
            return
        time.sleep(0.01)


def train(command: Command) -> float:
    """Run to the end; the seconds from the first step on."""
    process = command.start()
    wait_for_training(command, process)
    began = time.monotonic()
    _, error = process.communicate()
    assert process.returncode == 0, error
    return time.monotonic() - began


def kill_and_resume(command: Command, times: int, seconds: float, draw: random.Random) -> int:
    """Kill a run so many times, or fewer if it ends before that, and let it end; how often it was killed.

    Args:
        command: the run, not begun yet.
        times: at most.
        seconds: that it takes from its first step to its last.
        draw: the moments.
    """
    for killed in range(times):
        there = command.last.is_file()
        if not there:
            shutil.rmtree(command.runs, ignore_errors=True)
        process = command.start(*(("--ckpt_path", "last") if there else ()))
        wait_for_training(command, process)
        # what is resumed has less left to do
        time.sleep(draw.uniform(0, seconds / 2 if there else seconds))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            return killed
    if not command.last.is_file():
        shutil.rmtree(command.runs, ignore_errors=True)
    command.resume()
    return times


def as_bytes(values: dict[str, Any]) -> dict[str, bytes]:
    """Of each leaf of a checkpoint."""
    return {name: v[-1] if isinstance(v, tuple) else repr(v).encode() for name, v in values.items()}


def result(run: Path) -> dict[str, bytes]:
    """What must not depend on whether a run was interrupted."""
    state = checkpoint(run)
    found = as_bytes(dict(leaves({part: state[part] for part in PARTS})))
    found |= {f"{name} {step}": value.encode() for (name, step), value in last_values(run).items()}
    return found | {path.name: path.read_bytes() for path in run.glob("samples/*.png")}


def differing_bits(one: dict[str, bytes], two: dict[str, bytes]) -> int:
    """In all values; one that the other lacks counts as zeros there."""
    count = 0
    for name in one.keys() | two.keys():
        first, second = (int.from_bytes(values.get(name, b""), "little") for values in (one, two))
        count += (first ^ second).bit_count()
    return count


def digests(run: Path) -> list[str]:
    """SHA-256 of the final weights of the network, and of the EMA."""
    state = checkpoint(run)
    weights = {name: t for name, t in state["state_dict"].items() if name.startswith("denoiser.network.")}
    both = (as_bytes(dict(leaves(part))) for part in (weights, state["ema"]["shadow_params"]))
    return [hashlib.sha256(b"".join(part.values())).hexdigest() for part in both]


def damage(folder: Path, times: int, draw: random.Random, bar: Any) -> dict[str, Counter[str]]:
    """Damage the last checkpoint in random ways; by kind, how often that was tried and what came of it."""
    last = folder / "last.ckpt"
    whole = last.read_bytes()
    before = {path: as_bytes(dict(leaves(load_checkpoint(path)))) for path in folder.glob("*.ckpt")}
    table: dict[str, Counter[str]] = {}
    for number in range(times):
        kind = DAMAGES[number % len(DAMAGES)]
        content = bytearray(whole)
        kind(content, draw)
        last.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_newest(folder)
        assert found is not None
        path, loaded = found
        bits = differing_bits(before[path], as_bytes(dict(leaves(loaded))))
        row = table.setdefault(kind.__name__.replace("_", " "), Counter())
        row.update(tried=1, survived=bits == 0, seen=path != last, bits=bits)
        bar.update()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the damages")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--damages", type=int, default=50)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    total = options.kills + options.damages + 2  # two more kills of two processes
    with tempfile.TemporaryDirectory() as folder, progress_bar(total=total, unit="fault") as bar:
        root = Path(folder)
        one = make_command(root / "one", environment)
        seconds = train(one)
        expected = result(one.run)
        ways = {"uninterrupted": one}

        kills: Counter[str] = Counter()
        while kills["tried"] < options.kills:
            command = make_command(Path(tempfile.mkdtemp(dir=root)) / "killed", environment)
            times = kill_and_resume(command, min(KILLS_PER_RUN, options.kills - kills["tried"]), seconds, draw)
            bits = differing_bits(expected, result(command.run))
            kills.update(tried=times, survived=times * (bits == 0), bits=bits)
            bar.update(times)
            if times == KILLS_PER_RUN:
                ways[f"killed {times} times"] = command

        table = damage(Path(shutil.copytree(one.run / "checkpoints", root / "checkpoints")), options.damages, draw, bar)

        two = make_command(root / "two", environment, processes=2)
        seconds = train(two)
        ways["two processes"] = two
        command = make_command(root / "two_killed", environment, processes=2)
        times = kill_and_resume(command, 2, seconds, draw)
        ways[f"two processes, killed {times} times"] = command
        bits = differing_bits(result(two.run), result(command.run))
        pair = Counter(tried=times, survived=times * (bits == 0), bits=bits)
        hashes = {name: digests(command.run) for name, command in ways.items()}

    print(f"{'':28} tried  survived  seen  differing bits")
    rows = {"SIGKILL": kills, "SIGKILL, two processes": pair, **table}
    for name, row in rows.items():
        print(f"{name:28} {row['tried']:5} {row['survived']:9} {row.get('seen', '')!s:>5} {row['bits']:15}")
    print(f"\n{'SHA-256 of the final weights':32} {'network':64} EMA")
    for name, (network, ema) in hashes.items():
        print(f"{name:32} {network} {ema}")


if __name__ == "__main__":
    main()
