"""`lightning evaluate`: a checkpoint judged in comparable numbers, for one sampler or for many."""

import copy
import inspect
import math
import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from torch import Tensor

import diffusion_lightning.data  # noqa: F401 — so that its classes are known by their short names
from diffusion_lightning.commands.drawing import add_drawing_options, drawing_context, load_on_device
from diffusion_lightning.commands.evaluation_report import Results, new_folder
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.real_images import (
    RealImages,
    data_of_run,
    image_data,
    images_of_data,
    images_of_folder,
)
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint, run_of
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.home import default_cache
from diffusion_lightning.images import is_picture, to_uint8, write_png
from diffusion_lightning.likelihood import bits_per_dim
from diffusion_lightning.messages import warn
from diffusion_lightning.metrics.evaluation import MetricName, evaluate, metric_name, possible_metrics
from diffusion_lightning.metrics.features import FEATURES, FeatureChoice, FeatureName, auto_feature, build_features
from diffusion_lightning.metrics.neighbours import PROBES, find_neighbours, image_batches, neighbours_picture
from diffusion_lightning.metrics.reference import Reference
from diffusion_lightning.progress import progress_bar, watched
from diffusion_lightning.randomness import Stream, derive_seed, draw_some
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.samplers.ode import AdaptiveMethod
from diffusion_lightning.training.bf16 import has_bf16_units
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.checkpoint_file import load_checkpoint
from diffusion_lightning.training.recipe import describe
from diffusion_lightning.training.trained import TrainedModel
from diffusion_lightning.version import __version__, installed_version

ROWS, NEAREST = 8, 5
"""Of the picture of neighbours: samples, and real images beside each."""

LONGEST_NAME = 150
"""Of a folder; most systems allow 255 bytes."""


def evaluate_command(args: list[str]) -> None:
    """Parse the options, draw and judge the samples, write the results, and print them as a table.

    Args:
        args: the command line after ``lightning evaluate``.

    Raises:
        ValueError, OSError: for options, checkpoints, data or outputs that cannot be used.
    """
    options = evaluate_parser().parse_args(args)
    _check_options(options)
    options.ckpt_path = find_checkpoint(options.ckpt_path)
    given = evaluate_parser().instantiate(options)
    module = load_on_device(options.ckpt_path, options.device, options.compile)
    if module.shape is None or not is_picture(module.shape):
        what = f"examples of shape {module.shape}" if module.shape is None or len(module.shape) > 1 else "points"
        needed = "evaluation is of images (C, H, W) of 1 or 3 channels"
        raise UsageError(f"ckpt_path={options.ckpt_path!r}: is of {what}: {needed}")
    samplers = _samplers(given, module)
    subject = _Subject(options, module, given.data)
    folder = new_folder(_output(options), _folder_name(options, subject, samplers))
    try:
        _run(options, subject, samplers, folder)
    finally:
        with suppress(OSError):
            folder.rmdir()  # if it was left empty


class _Subject:
    """What is judged, and against what; made, everything has been looked at that can be wrong.

    Args:
        options: the command's.
        module: the checkpoint's.
        data: of the option ``--data``.
    """

    def __init__(self, options: Namespace, module: TrainedModel, data: LightningDataModule | None) -> None:
        self.options = options
        self.module = module
        assert module.shape is not None
        # its tensors are in the module already
        checkpoint = load_checkpoint(options.ckpt_path, map_location="meta")
        self.step, self.epoch = checkpoint["global_step"], checkpoint["epoch"]

        wants_reference = bool(
            options.metrics is None
            or set(options.metrics) - {"is"}
            or options.neighbours
            or options.export_reference is not None
        )
        self.data: ImageDataModule | None = None
        if data is not None or options.bits_per_dim is not None or (wants_reference and options.reference is None):
            self.data = image_data(data if data is not None else data_of_run(run_of(options.ckpt_path)), module.shape)
        self.statistics: Reference | None = None
        self.real: RealImages | None = None
        if wants_reference and options.reference is not None:
            path = Path(options.reference)
            if path.is_dir():
                self.real = images_of_folder(path, module.shape, options.quiet)
            elif path.suffix == ".npz":
                self.statistics = Reference.read(path)
            else:
                raise UsageError(f"reference={options.reference!r}: must be a folder of pictures, or an .npz file")

        self.network: Any
        self.feature, self.network = build_features(self._feature(), options.feature_weights)
        self.network.to(module.device)
        self._check_statistics()
        self.metrics = self._metrics()
        if wants_reference and options.reference is None:
            assert self.data is not None
            self.real = images_of_data(self.data, from_run=data is None)
        self.rows = ROWS if options.neighbours is None else options.neighbours
        if self.real is None:
            if options.neighbours:
                raise UsageError(
                    f"neighbours={options.neighbours}: {options.reference} holds no images: give --data or a folder"
                )
            self.rows = 0
        self.labels, self.classes = self._labels(is_given=data is not None)
        self.reference_name = self.real.name if self.real else options.reference if self.statistics else None
        self.has_told_precision = False

    @property
    def format(self) -> str:
        """Of the network's numbers, as Lightning calls it."""
        is_bf16 = self.options.precision == "auto" and has_bf16_units(self.module.device.type)
        return "bf16-mixed" if is_bf16 else "32-true"

    def reference(self) -> Reference | None:
        """The real side, computed if it is not on disk, and written where it is to be exported."""
        reference = self.statistics
        if self.real is not None:
            batches = watched(
                image_batches(self.real.images),
                total=self.real.count,
                desc="reference",
                unit="image",
                disable=self.options.quiet,
            )
            data_id = self.real.data_id()
            reference = Reference.of_images(self.real.name, batches, self.network, data_id, default_cache())
        if self.options.export_reference is not None:
            assert reference is not None
            reference.write(Path(self.options.export_reference), self.feature)
        return reference

    def _labels(self, is_given: bool) -> tuple[Tensor | None, str]:
        """The samples' classes, in the shares of the data that are given or that were trained on; and how, in words."""
        num, module = self.options.num, self.module
        if not module.has_classes:
            return None, "none"
        fits = self.data is not None and self.data.num_classes == module.network.num_classes
        if fits and (is_given or module.class_counts is None):
            assert self.data is not None
            self.data.prepare_data()
            name = type(self.data).__name__
            return module.labels_in_shares(num, self.data.class_counts()), f"in the shares of {name}"
        if module.class_counts is None:
            warn(
                f"{self.options.ckpt_path} does not say how often its training data have each class: the samples' "
                "classes come in turn; give --data to draw them in the shares of that data"
            )
        return module.labels_in_shares(num), module.drawn_classes

    def _feature(self) -> FeatureName:
        stated = None if self.statistics is None else self.statistics.feature
        if self.options.feature != "auto":
            if stated not in (None, self.options.feature):
                raise UsageError(
                    f"feature={self.options.feature!r}: {self.options.reference} is of the features {stated!r}: must "
                    "be the same"
                )
            return self.options.feature
        if self.statistics is not None:
            name = self.statistics.known_feature
            if name is None:
                count = len(self.statistics.moments.mean)
                found = f"the features {stated!r}" if stated is not None else f"{count} features"
                raise UsageError(
                    f"reference={self.options.reference!r}: is of {found}, which none of the known networks has: "
                    f"{', '.join(FEATURES)}"
                )
            return name
        assert self.module.shape is not None
        named = self.data.fid_feature if self.data is not None and self.options.reference is None else None
        return named or auto_feature(self.module.shape)

    def _check_statistics(self) -> None:
        if self.statistics is None:
            return
        path = self.options.reference
        count, own = len(self.statistics.moments.mean), self.network.num_features
        if count != own:
            raise UsageError(f"reference={path!r}: is of {count} features: must be of {own}, as {self.feature!r} has")

    def _metrics(self) -> tuple[MetricName, ...]:
        has_features = self.statistics is None or self.statistics.features is not None
        possible = possible_metrics(self.network, has_features)
        if self.options.metrics is None:
            return possible
        if missing := [name for name in self.options.metrics if name not in possible]:
            raise UsageError(
                f"metrics: {missing[0]} needs the reference's features, and {self.options.reference} holds their "
                "moments alone: leave it out, or give --data or a folder"
            )
        return tuple(dict.fromkeys(self.options.metrics))


@dataclass
class _Drawn:
    """Samples of one sampler as 8-bit images and as features, on the CPU."""

    images: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    broken: int = 0
    """Samples with values that are not finite."""


def _run(options: Namespace, subject: _Subject, samplers: Sequence[Sampler], folder: Path) -> None:
    """Judge each sampler; what is known by then is on disk after each."""
    reference = subject.reference()
    bits, bits_of = _bits_per_dim(subject) if options.bits_per_dim is not None else ({}, {})
    results = Results(is_sweep=len(samplers) > 1)
    for sampler in samplers:
        entry, drawn = _judge(subject, sampler, reference)
        entry["metrics"] |= bits
        entry["settings"] |= bits_of
        results.entries.append(entry)
        results.families.append(_label(sampler, with_steps=False))
        if subject.rows and entry is (results.best or results.entries[0]):
            entry["neighbours"] = _look_at_neighbours(subject, drawn, reference, folder / "neighbours.png")
        results.write(folder)
    results.show()
    print(f"Everything is in {folder}")


def _judge(subject: _Subject, sampler: Sampler, reference: Reference | None) -> tuple[dict[str, Any], _Drawn]:
    """The results of one sampler, as they are written down; and its samples."""
    options, start = subject.options, time.perf_counter()
    drawn = _Drawn()
    for samples in _samples(subject, sampler):
        drawn.broken += count_broken(samples)
        images = to_uint8(samples)
        drawn.features.append(subject.network(images).cpu())
        drawn.images.append(images.cpu())
    features = torch.cat(drawn.features)
    logits = subject.network.logits(features.to(subject.module.device)).cpu() if "is" in subject.metrics else None
    scores = evaluate(
        features, reference, subject.metrics, logits=logits, seed=options.seed, progress=not options.quiet
    )
    if drawn.broken:
        warn_of_broken(drawn.broken, options.num, f"the values of {_label(sampler)} are nan")
        scores.values = dict.fromkeys(scores.values, math.nan)
    entry = {
        "checkpoint": options.ckpt_path,
        "step": subject.step,
        "epoch": subject.epoch,
        "sampler": _label(sampler),
        "nfe": sampler.nfe,
        "num": options.num,
        "seed": options.seed,
        "precision": subject.format,
        "feature": subject.feature,
        "reference": subject.reference_name,
        "metrics": {metric_name(name, subject.feature, options.num): v for name, v in scores.values.items()},
        "settings": {"batch_size": options.batch_size, "classes": subject.classes, **scores.settings},
        "seconds": round(time.perf_counter() - start, 1),
        "versions": _versions(),
    }
    if drawn.broken:
        entry["not_finite"] = drawn.broken
    return entry, drawn


def _samples(subject: _Subject, sampler: Sampler) -> Iterator[Tensor]:
    """Batches of samples in [-1, 1], by the EMA weights; every sampler has the same starts and classes."""
    options, module = subject.options, subject.module
    generator = torch.Generator(module.device)
    bar = progress_bar(total=options.num, desc=_label(sampler), unit="image", disable=options.quiet)
    with bar:
        for index, first in enumerate(range(0, options.num, options.batch_size)):
            size = min(options.batch_size, options.num - first)
            labels = None if subject.labels is None else subject.labels[first : first + size]
            # anew for each batch, whose start is the first draw: what a sampler draws later moves no other start
            generator.manual_seed(derive_seed(options.seed, index, Stream.EVALUATION))
            with drawing_context(options.precision, module.device, tell=not subject.has_told_precision):
                subject.has_told_precision = True
                samples = module.sample(sampler, size, labels, generator, batch_size=size, progress=not options.quiet)
            yield samples  # outside of the context: what is done with them is done in float32
            bar.update(size)


def _bits_per_dim(subject: _Subject) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean of held-out examples and its standard error, named by how many there are; and which examples they are."""
    options, module = subject.options, subject.module
    assert subject.data is not None
    subject.data.prepare_data()
    subject.data.setup("test")
    held_out = subject.data.held_out_images
    available: int = len(held_out)  # type: ignore[arg-type]
    chosen = draw_some(options.bits_per_dim, available, options.seed)
    count = len(chosen)
    images, labels = held_out[chosen.tolist()]
    values = bits_per_dim(
        module.denoiser,
        images.to(module.device),
        generator=torch.Generator(module.device).manual_seed(options.seed),
        batch_size=options.batch_size,
        progress=not options.quiet,
        **module.condition(labels.to(module.device)),
    ).double()
    found = {f"bits_per_dim@{count}": values.mean().item()}
    if count > 1:
        found[f"bits_per_dim_error@{count}"] = values.std().item() / math.sqrt(count)
    return found, {"bits_per_dim": {"held_out": count, "of": available, "seed": options.seed}}


def _look_at_neighbours(subject: _Subject, drawn: _Drawn, reference: Reference | None, path: Path) -> dict[str, Any]:
    """Write the picture, and return what it says of copies."""
    assert subject.real is not None
    assert reference is not None
    assert reference.features is not None
    found = find_neighbours(
        torch.cat(drawn.images),
        torch.cat(drawn.features),
        subject.real.images,
        reference.features,
        subject.rows,
        NEAREST,
        seed=subject.options.seed,
        progress=not subject.options.quiet,
    )
    write_png(neighbours_picture(found, subject.real.images), path)
    spaces = (("features", found.in_features), ("pixels", found.in_pixels))
    return {
        "smallest_ratio": found.ratios.min().item(),
        "copies": found.copies,
        "usual_of": min(PROBES, subject.real.count),
        **{name: {"closest_shown": near.distances.min().item(), "usual": near.usual} for name, near in spaces},
    }


# ---- options


def evaluate_parser() -> OneLineParser:
    """The options of ``lightning evaluate``."""
    parser = OneLineParser(
        prog="lightning evaluate",
        description="FID, KID, Inception Score, precision and recall of a checkpoint's samples, by its EMA weights.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument("--num", type=int, default=10_000, help="How many samples; values of different ones differ.")
    parser.add_argument(
        "--sampler", type=Sampler | None, default=None, help="Heun, PredictorCorrector, …; the checkpoint's by default."
    )
    parser.add_argument(
        "--sweep.samplers",
        type=list[Sampler] | None,
        default=None,
        help="Several, compared from the same starts: '[Heun, DPMSolverPlusPlus, DDIM]'.",
    )
    parser.add_argument(
        "--sweep.steps", type=list[int] | None, default=None, help="Each sampler with each of these: '[4, 8, 16]'."
    )
    parser.add_argument(
        "--metrics",
        type=list[MetricName] | None,
        default=None,
        help="'[fid, kid, is, precision_recall]'; all that features and reference allow by default.",
    )
    parser.add_argument(
        "--bits_per_dim", type=int | None, default=None, help="Also, on so many held-out examples, drawn by the seed."
    )
    parser.add_argument(
        "--data",
        type=LightningDataModule | None,
        default=None,
        help="Whose training images to compare with; by default those of the checkpoint's run.",
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="To compare with instead: a folder of pictures, or an .npz of mu and sigma, or of pool_3.",
    )
    parser.add_argument(
        "--export_reference", type=str | None, default=None, help="Write mu and sigma of the reference: stats.npz."
    )
    parser.add_argument(
        "--feature",
        type=FeatureChoice,
        default="auto",
        help="The feature network; inception_tf1 resizes as for published statistics.",
    )
    parser.add_argument(
        "--feature_weights", type=str | None, default=None, help="Local file of Inception's weights, else downloaded."
    )
    parser.add_argument(
        "--neighbours",
        type=int | None,
        default=None,
        help=f"Samples shown with their nearest training images; 0: no picture, {ROWS} by default.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Decides the samples and the metrics' subsets.")
    parser.add_argument("--output", type=str | None, default=None, help="Folder; by default evaluations of the run.")
    add_drawing_options(parser)
    return parser


def _check_options(options: Namespace) -> None:
    """What can be seen to be wrong without opening anything."""
    if options.num < 2:
        raise UsageError(f"num={options.num}: must be at least 2, for there is no covariance of one image")
    for name, least in (("batch_size", 1), ("bits_per_dim", 1), ("neighbours", 0)):
        if options[name] is not None and options[name] < least:
            raise UsageError(f"{name}={options[name]}: must be at least {least}")
    check_seed(seed=options.seed)
    if options.metrics == []:
        raise UsageError("metrics=[]: name at least one; bits/dim alone: lightning likelihood")
    if options.data is not None and options.reference is not None and options.bits_per_dim is None:
        raise UsageError(f"reference={options.reference!r}: --data is given too: give one of them")
    for name in ("samplers", "steps"):
        if options.sweep[name] == []:
            raise UsageError(f"sweep.{name}=[]: name at least one")
    if options.sweep.samplers is not None and options.sampler is not None:
        raise UsageError("sampler: sweep.samplers are given too: give one of them")
    for steps in options.sweep.steps or []:
        if steps < 1:
            raise UsageError(f"sweep.steps={options.sweep.steps}: must be at least 1 each")
    if options.export_reference is not None:
        path = Path(options.export_reference)
        if path.suffix != ".npz":
            raise UsageError(f"export_reference={str(path)!r}: must end in .npz")
        if path.exists():
            raise UsageError(f"export_reference={str(path)!r}: is there already: give another name")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"export_reference={str(path)!r}: its folder is not there")


def _samplers(given: Namespace, module: TrainedModel) -> list[Sampler]:
    """Those to be judged, after asking each whether it fits the process."""
    base = given.sweep.samplers or [given.sampler if given.sampler is not None else module.sampler]
    option = "sampler" if given.sweep.samplers is None else "sweep.samplers"
    steps = list(dict.fromkeys(given.sweep.steps or []))
    for sampler in base:
        chooses = getattr(sampler, "method", None) in get_args(AdaptiveMethod)
        if steps and (chooses or "steps" not in inspect.signature(type(sampler)).parameters):
            raise UsageError(f"{option}: {_label(sampler)} takes no number of steps: leave it out of --sweep.steps")
    samplers = [_with_steps(sampler, count) for sampler in base for count in steps] if steps else list(base)
    for sampler in samplers:
        try:
            sampler.check(module.denoiser.sde)
        except ValueError as error:
            raise UsageError(f"{option}: {type(sampler).__name__}: {error}") from error
    return samplers


def _with_steps(sampler: Sampler, steps: int) -> Sampler:
    changed = copy.copy(sampler)
    changed.steps = steps  # type: ignore[attr-defined]
    return changed


def _label(sampler: Sampler, with_steps: bool = True) -> str:
    """Such as ``DPMSolverPlusPlus(steps=8, order=3)``: its steps, and what is not by default."""
    parameters = inspect.signature(type(sampler)).parameters
    settings = describe(sampler)["init_args"]
    chooses = settings.get("method") in get_args(AdaptiveMethod)
    shown = [
        f"{name}={_short(value)}"
        for name, value in settings.items()
        if (with_steps and not chooses if name == "steps" else value != describe(parameters[name].default))
    ]
    return type(sampler).__name__ + (f"({', '.join(shown)})" if shown else "")


def _short(value: Any) -> str:
    return value["class_path"].rpartition(".")[2] if isinstance(value, dict) else str(value)


# ---- results


def _output(options: Namespace) -> Path:
    if options.output is not None:
        return Path(options.output)
    return (run_of(options.ckpt_path) or Path(options.ckpt_path).parent) / "evaluations"


def _folder_name(options: Namespace, subject: _Subject, samplers: Sequence[Sampler]) -> str:
    """Of what decides the values, so that other settings have another name."""
    names = dict.fromkeys(type(sampler).__name__ for sampler in samplers)
    drawn_by = f"sweep {' '.join(names)} {len(samplers)}" if len(samplers) > 1 else _label(samplers[0])
    parts = [
        f"step={subject.step}",
        drawn_by,
        f"num={options.num}",
        f"seed={options.seed}",
        subject.feature,
        Path(subject.reference_name).stem if subject.reference_name else "",
    ]
    return re.sub(r"[^\w=.]+", "-", "_".join(filter(None, parts))).replace("-_", "_").strip("-")[:LONGEST_NAME]


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusion-lightning": __version__,
        **{name: installed_version(name) for name in ("lightning", "torchmetrics", "torch-fidelity")},
    }
