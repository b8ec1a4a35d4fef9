"""A model's samples judged: drawn by one sampler after another from the same starts, measured, and looked at."""

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_lightning.commands.comparison import Comparison
from diffusion_lightning.commands.subject import Subject
from diffusion_lightning.commands.sweep import Way, label
from diffusion_lightning.images import to_uint8, write_png
from diffusion_lightning.likelihood import bits_per_dim
from diffusion_lightning.metrics.agreement import Agreement, least_sure, tally_held_out, worst_picture
from diffusion_lightning.metrics.evaluation import evaluate, is_spread, metric_name, spread_name
from diffusion_lightning.metrics.features import FEATURES, reads_classes
from diffusion_lightning.metrics.neighbours import PROBES, find_neighbours, neighbours_picture
from diffusion_lightning.metrics.reference import Reference
from diffusion_lightning.randomness import draw_some
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.guided import name_of
from diffusion_lightning.version import __version__, installed_version

if TYPE_CHECKING:  # data modules load Lightning
    from diffusion_lightning.data.base import ImageDataModule

NEAREST = 5
"""Real images beside each sample in the picture of neighbours."""


@dataclass
class Drawn:
    """Samples drawn in one way as 8-bit images and as features, on the CPU."""

    images: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None
    """Of a classifier, where a metric needs them."""
    broken: int = 0
    """Samples with values that are not finite."""


def judge(
    subject: Subject, way: Way, comparison: Comparison, reference: Reference | None
) -> tuple[dict[str, Any], Drawn]:
    """The results of one way to draw, as they are written down; and its samples.

    Args:
        subject: draws the samples.
        way: by which sampler, and steered by what.
        comparison: in which features, and by which metrics.
        reference: the real side; not needed for the Inception Score and agreement.
    """
    start, network = time.perf_counter(), comparison.network
    drawn = Drawn()
    for samples in subject.samples(way):
        drawn.broken += count_broken(samples)
        images = to_uint8(samples)
        drawn.features.append(network(images).cpu())
        drawn.images.append(images.cpu())
    features = torch.cat(drawn.features)
    if {"is", "agreement"} & set(comparison.metrics):
        drawn.logits = network.logits(features.to(subject.model.device)).cpu()
    scores = evaluate(
        features,
        reference,
        comparison.metrics,
        logits=drawn.logits,
        labels=subject.labels.cpu() if subject.labels is not None else None,
        extrapolate=comparison.extrapolate,
        seed=subject.seed,
        progress=subject.progress,
    )
    if drawn.broken:
        warn_of_broken(drawn.broken, subject.num, f"the values of {way.name} are nan")
        scores.values = dict.fromkeys(scores.values, math.nan)
    guidance = name_of(way.guidance)
    steered_by = {} if guidance is None else {"guidance": guidance}
    entry = {
        **subject.origin,
        "sampler": label(way.sampler),
        "guidance": guidance,
        "nfe": way.sampler.nfe,
        "num": subject.num,
        "seed": subject.seed,
        "precision": subject.format,
        "feature": comparison.feature,
        "reference": comparison.name,
        "metrics": {metric_name(name, comparison.feature, subject.num): v for name, v in scores.values.items()},
        "settings": {"batch_size": subject.batch_size, "classes": subject.classes, **steered_by, **scores.settings},
        "seconds": round(time.perf_counter() - start, 1),
        "versions": _versions(),
    }
    if drawn.broken:
        entry["not_finite"] = drawn.broken
    return entry, drawn


def judge_by_seeds(
    subjects: Sequence[Subject], way: Way, comparison: Comparison, reference: Reference | None
) -> tuple[dict[str, Any], Drawn]:
    """As :func:`judge`, of the same by several seeds; and the samples of the first.

    Each value is the mean over the seeds, and its ``_std`` their standard deviation, in the place of a spread or an
    error that is of a single one.

    Args:
        subjects: alike but for the seed.
        way: as there.
        comparison: as there.
        reference: as there.
    """
    first, drawn = judge(subjects[0], way, comparison, reference)
    entries = [first, *(judge(subject, way, comparison, reference)[0] for subject in subjects[1:])]
    if len(entries) == 1:
        return first, drawn
    metrics: dict[str, float] = {}
    for name in first["metrics"]:
        if not is_spread(name, first["metrics"]):
            values = torch.tensor([entry["metrics"][name] for entry in entries], dtype=torch.float64)
            metrics |= {name: values.mean().item(), spread_name(name): values.std().item()}
    entry = {
        **first,
        "seeds": [subject.seed for subject in subjects],
        "metrics": metrics,
        "settings": {"seeds": len(subjects), **first["settings"]},
        "by_seed": [entry["metrics"] for entry in entries],
        "seconds": round(sum(entry["seconds"] for entry in entries), 1),
    }
    if broken := sum(entry.get("not_finite", 0) for entry in entries):
        entry["not_finite"] = broken
    return entry, drawn


def mean_bits_per_dim(subject: Subject, data: "ImageDataModule", num: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean over held-out examples and its standard error, named by how many there are; and which examples they are.

    Args:
        subject: whose model it is of.
        data: whose held-out images, which have been set up.
        num: how many of them, drawn by the seed; all if there are fewer.
    """
    model, held_out = subject.model, data.held_out_images
    available: int = len(held_out)  # type: ignore[arg-type]
    chosen = draw_some(num, available, subject.seed).tolist()
    count = len(chosen)
    images, condition = held_out[chosen][0], data.examples(chosen)[1]
    values = bits_per_dim(
        model.denoiser,
        images.to(model.device),
        generator=torch.Generator(model.device).manual_seed(subject.seed),
        batch_size=subject.batch_size,
        progress=subject.progress,
        **model.condition(condition),
    ).to("cpu", torch.float64)
    found = {f"bits_per_dim@{count}": values.mean().item()}
    if count > 1:
        found[f"bits_per_dim_error@{count}"] = values.std().item() / math.sqrt(count)
    return found, {"bits_per_dim": {"held_out": count, "of": available, "seed": subject.seed}}


def judge_held_out(
    subject: Subject, comparison: Comparison, data: "ImageDataModule | None", num: int | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """What held-out images say, named by how many there are, and which examples they are.

    Of the model their bits/dim, and of the metrics what the classifier reads in them as it does in samples.

    Args:
        subject: what is judged.
        comparison: whose network is the classifier, if agreement is wanted.
        data: whose held-out images; without it there is nothing to say.
        num: how many of them for bits/dim; None if it is not wanted.
    """
    values: dict[str, float] = {}
    settings: dict[str, Any] = {}
    is_read = "agreement" in comparison.metrics
    if data is None or not (is_read or num is not None):
        return values, settings
    data.prepare_data()
    data.setup("test")
    held_out, count = data.held_out_images, len(data.held_out_images)  # type: ignore[arg-type]
    if is_read and count and reads_classes(comparison.feature, data.class_names, None):
        read = tally_held_out(comparison.network, held_out, subject.seed, subject.model.device, groups=data.groups)
        found = Agreement.of(read, asked=subject.labels is not None)
        shares, feature = found.shares | found.errors, f"{comparison.feature}_real"
        values |= {metric_name(name, feature, found.num): value for name, value in shares.items()}
        settings["agreement"] = {"held_out": found.num, "of": count, "seed": subject.seed}
    if num is not None:
        bits, bits_of = mean_bits_per_dim(subject, data, num)
        values, settings = values | bits, settings | bits_of
    return values, settings


def look_at_worst(subject: Subject, drawn: Drawn, comparison: Comparison, path: Path) -> dict[str, Any]:
    """Write the picture of the samples that the classifier is least sure of, and return what it says.

    Args:
        subject: whose samples they are.
        drawn: the samples, with the classifier's logits.
        comparison: whose network is the classifier.
        path: of the picture.
    """
    classes = FEATURES[comparison.feature].classes
    assert drawn.logits is not None
    assert classes is not None
    labels = subject.labels.cpu() if subject.labels is not None else None
    chosen, sure = least_sure(drawn.logits, labels)
    write_png(worst_picture(torch.cat(drawn.images), drawn.logits, labels, classes), path)
    return {"shown": len(chosen), "highest": sure.max().item(), "asked": labels is not None}


def look_at_neighbours(
    subject: Subject, drawn: Drawn, comparison: Comparison, reference: Reference, rows: int, path: Path
) -> dict[str, Any]:
    """Write the picture of the samples that are most like copies, and return what it says of copies.

    Args:
        subject: whose samples they are.
        drawn: the samples.
        comparison: with the real images.
        reference: their features.
        rows: how many samples the picture shows.
        path: of the picture.
    """
    assert comparison.real is not None
    assert reference.features is not None
    found = find_neighbours(
        torch.cat(drawn.images),
        torch.cat(drawn.features),
        comparison.real.images,
        reference.features,
        rows,
        NEAREST,
        seed=subject.seed,
        progress=subject.progress,
        workers=comparison.real.workers,
    )
    write_png(neighbours_picture(found, comparison.real.images), path)
    spaces = (("features", found.in_features), ("pixels", found.in_pixels))
    return {
        "smallest_ratio": found.ratios.min().item(),
        "copies": found.copies,
        "usual_of": min(PROBES, comparison.real.count),
        **{name: {"closest_shown": near.distances.min().item(), "usual": near.usual} for name, near in spaces},
    }


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusion-lightning": __version__,
        **{name: installed_version(name) for name in ("lightning", "torchmetrics", "torch-fidelity")},
    }
