"""What samples of digits are worth, by which of its samplers a system draws best, and how long it takes.

FIDs in all features that know digits, against the 60,000 training digits; ``legible``, the share of samples whose most
likely class has p ≥ 0.9; and with classes ``agreement``, the share that show what was asked for. The newest features
choose among a system's samplers and read the classes.
"""

import contextlib
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from systems import system_class
from systems.base import classes, digits
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from diffusion_lightning.callbacks.performance import peak_memory_gb
from diffusion_lightning.data.shares import in_shares
from diffusion_lightning.images import to_uint8
from diffusion_lightning.metrics.agreement import Agreement, tally
from diffusion_lightning.metrics.features import FEATURES, build_features
from diffusion_lightning.metrics.fid import ReferenceFID

KNOWN = tuple(name for name in ("mnist", "digits") if name in FEATURES)
"""The features of digits, the newest last."""

NEWEST = KNOWN[-1]

BATCH = 250

TRIED_ON, JUDGED_ON = 1, 0
"""Seeds: what was chosen as the best of several is judged on other samples, on which it has no luck."""


def fid(root: str, images: Tensor, feature: str = NEWEST) -> float:
    """Of uint8 images against the training digits."""
    return measure(root, images, (feature,))["fid"][feature]


def measure(root: str, images: Tensor, features: Sequence[str] = KNOWN, asked: Tensor | None = None) -> dict[str, Any]:
    """``fid``, a mapping from these features, ``legible`` and, of images that were ``asked`` for, ``agreement``."""
    result: dict[str, Any] = {"fid": {}}
    for feature in features:
        network = build_features(feature)[1]
        metric = ReferenceFID(network)
        metric.set_reference(digits(root).split(500), "mnist-train")
        found = torch.cat([metric.update(batch) for batch in images.split(BATCH)])
        result["fid"][feature] = metric.compute()
        if FEATURES[feature].classes is not None:
            result |= Agreement.of(tally(network.logits(found), asked), asked is not None).shares
    return result


def asked_of(name: str, root: str, num: int) -> Tensor | None:
    """The classes that a system is asked for, in the shares of the training digits; None of one without classes."""
    return in_shares(classes(root).bincount().tolist(), num) if system_class(name).has_classes else None


def draw(name: str, root: str, path: Path, num: int, sampler: str, seed: int) -> tuple[Tensor, float, Tensor | None]:
    """Samples as uint8, the network evaluations of one, and what was asked for."""
    torch.manual_seed(seed)
    asked = asked_of(name, root, num)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        samples, evaluations = system_class(name).sample(path, num, BATCH, sampler, asked)
    return to_uint8(samples), evaluations, asked


def choose(name: str, root: str, path: Path, num: int, threads: int, result: Path) -> None:
    """Try the samplers of a system on what was saved in ``path``; write down each as it is done, and the best."""
    torch.set_num_threads(threads)
    tried = samplers_tried(result).get("tried", {})
    names = list(system_class(name).samplers())
    for sampler in tqdm(names if len(names) > 1 else [], desc=f"samplers of {name}", unit="sampler"):
        if sampler not in tried:
            images, evaluations, _ = draw(name, root, path, num, sampler, TRIED_ON)
            tried[sampler] = {"evaluations": evaluations, "fid": fid(root, images)}
            result.write_text(json.dumps({"feature": NEWEST, "tried": tried}))
    chosen = best(tried, system_class(name).most_evaluations) if tried else names[0]
    result.write_text(json.dumps({"feature": NEWEST, "tried": tried, "samples": num, "best": chosen}))


def samplers_tried(result: Path) -> dict[str, Any]:
    """What is written there of the samplers by the newest features; nothing if it is by others."""
    found = json.loads(result.read_text()) if result.is_file() else {}
    return found if found.get("feature") == NEWEST else {}


def is_judged(path: Path, num: int) -> bool:
    """Whether what was saved there has been judged by so many samples, in all features that there are now."""
    result = path.with_suffix(".json")
    found = json.loads(result.read_text()) if result.is_file() else {}
    return found.get("samples") == num and set(KNOWN) <= set(found["fid"])


def best(tried: Mapping[str, Mapping[str, float]], most_evaluations: float) -> str:
    """The sampler with the lowest FID of those that need at most so many evaluations."""
    allowed = {name: row["fid"] for name, row in tried.items() if row["evaluations"] <= most_evaluations}
    if not allowed:
        raise SystemExit(f"of {', '.join(tried)} none needs at most {most_evaluations:g} evaluations")
    return min(allowed, key=allowed.__getitem__)


def judge(name: str, root: str, path: Path, num: int, sampler: str, threads: int) -> None:
    """Draw by what was saved in ``path``; write what it is worth, and the first 64 digits, beside it."""
    torch.set_num_threads(threads)
    images, evaluations, asked = draw(name, root, path, num, sampler, JUDGED_ON)
    result = {"samples": num, "evaluations": evaluations, "memory_gb": peak_memory_gb(torch.device("cpu"))}
    save_image(images[:64] / 255, path.with_suffix(".png"), nrow=8, padding=2)
    result |= measure(root, images, asked=asked) | {"parameters": system_class(name).parameters_of(path)}
    path.with_suffix(".json").write_text(json.dumps(result))


def interleaved(
    root: str, drawn_by: Mapping[str, tuple[Path, str]], num: int, turns: int, threads: int
) -> dict[str, list[float]]:
    """Seconds for 1,000 samples of systems that draw ``num`` each in turn, in every turn but the first.

    Args:
        root: folder of MNIST.
        drawn_by: of each system what was saved, and the sampler.
        num: samples of a turn, at once.
        turns: how many are timed; one more warms up.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    seconds: dict[str, list[float]] = {name: [] for name in drawn_by}
    for _ in tqdm(range(turns + 1), desc=f"drawing {', '.join(drawn_by)}", unit="turn"):
        for name, (path, sampler) in drawn_by.items():
            asked = asked_of(name, root, num)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                began = time.perf_counter()
                system_class(name).sample(path, num, num, sampler, asked)
                seconds[name].append((time.perf_counter() - began) * 1000 / num)
    return {name: times[1:] for name, times in seconds.items()}


def over(times: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """How many times as long a system takes as another beside it: the median over the turns."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
