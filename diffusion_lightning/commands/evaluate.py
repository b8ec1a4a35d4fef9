"""`lightning evaluate`: a checkpoint judged in comparable numbers, for one sampler or for many."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from diffusion_lightning.commands.comparison import Comparison, chosen_feature, chosen_metrics, statistics_of
from diffusion_lightning.commands.drawing import add_drawing_options, load_on_device
from diffusion_lightning.commands.evaluation_report import Results, folder_name, new_folder
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.judging import (
    judge_by_seeds,
    judge_held_out,
    look_at_neighbours,
    look_at_worst,
)
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint, run_of
from diffusion_lightning.commands.subject import Subject, subjects_of
from diffusion_lightning.commands.sweep import Way, label, samplers_of, ways_of
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.images import is_picture
from diffusion_lightning.metrics.evaluation import MetricName
from diffusion_lightning.metrics.extrapolation import least_samples
from diffusion_lightning.metrics.features import FEATURES, FeatureChoice, build_features, reads_classes
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.guided import name_of
from diffusion_lightning.training.trained import TrainedModel

if TYPE_CHECKING:  # data modules load Lightning
    from diffusion_lightning.data.base import ImageDataModule

ROWS = 8
"""Samples in the picture of neighbours."""


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
    settle_guidance(options)
    given = evaluate_parser().instantiate(options)
    model = load_on_device(options.ckpt_path, options.device, options.compile)
    if model.shape is None or not is_picture(model.shape):
        what = f"examples of shape {model.shape}" if model.shape is None or len(model.shape) > 1 else "points"
        needed = "evaluation is of images (C, H, W) of 1 or 3 channels"
        raise UsageError(f"ckpt_path={options.ckpt_path!r}: is of {what}: {needed}")
    # all that can be wrong is looked at before the work begins
    base = given.sweep.samplers or [given.sampler if given.sampler is not None else model.sampler]
    option = "sampler" if given.sweep.samplers is None else "sweep.samplers"
    samplers = samplers_of(base, given.sweep.steps, model.denoiser.sde, option)
    ways = ways_of(samplers, model.own_or(given.guidance), given.sweep.guidance_weights)
    for way in ways:
        model.guided(way.guidance)
    data = _data(options, given.data, model.shape)
    comparison = _comparison(options, model, data)
    rows = _rows(options, comparison)
    subjects = subjects_of(options, model, data)
    folder = new_folder(_output(options), _folder_name(subjects, comparison, ways))
    try:
        _run(options, subjects, comparison, data, ways, rows, folder)
    finally:
        with suppress(OSError):
            folder.rmdir()  # if it was left empty


def _run(
    options: Namespace,
    subjects: Sequence[Subject],
    comparison: Comparison,
    data: "ImageDataModule | None",
    ways: Sequence[Way],
    rows: int,
    folder: Path,
) -> None:
    """Judge each way to draw; what is known by then is on disk after each. The pictures are of the first seed."""
    subject = subjects[0]
    reference = comparison.reference(progress=not options.quiet)
    if options.export_reference is not None:
        assert reference is not None
        reference.write(Path(options.export_reference), comparison.feature)
    of_held_out, settings = judge_held_out(subject, comparison, data, options.bits_per_dim)
    results = Results(is_sweep=len(ways) > 1, guidance_weights=options.sweep.guidance_weights)
    for way in ways:
        entry, drawn = judge_by_seeds(subjects, way, comparison, reference)
        entry["metrics"] |= of_held_out
        entry["settings"] |= settings
        results.entries.append(entry)
        results.families.append(", ".join(filter(None, (label(way.sampler, with_steps=False), entry["guidance"]))))
        if entry is (results.best or results.entries[0]):
            if rows:
                assert reference is not None
                picture = folder / "neighbours.png"
                entry["neighbours"] = look_at_neighbours(subject, drawn, comparison, reference, rows, picture)
            if "agreement" in comparison.metrics:
                entry["worst"] = look_at_worst(subject, drawn, comparison, folder / "worst.png")
        results.write(folder)
    results.show()
    print(f"Everything is in {folder}")


# ---- what the options say


def _wants_reference(options: Namespace) -> bool:
    needed = options.metrics is None or set(options.metrics) - {"is", "agreement"}
    return bool(needed or options.neighbours or options.export_reference is not None)


def _data(options: Namespace, given: Any, shape: tuple[int, ...]) -> "ImageDataModule | None":
    """The data module that is given, or that of the checkpoint's run; None if it is not needed."""
    is_reference = _wants_reference(options) and options.reference is None
    if given is None and options.bits_per_dim is None and not is_reference:
        return None
    from diffusion_lightning.commands.real_images import data_of_run, image_data

    return image_data(given if given is not None else data_of_run(run_of(options.ckpt_path)), shape)


def _comparison(options: Namespace, model: TrainedModel, data: "ImageDataModule | None") -> Comparison:
    """With the training images of the data, or with what ``--reference`` names."""
    assert model.shape is not None
    is_wanted, path = _wants_reference(options), options.reference
    real = statistics = None
    if is_wanted and path is not None:
        if Path(path).is_dir():
            from diffusion_lightning.commands.real_images import images_of_folder

            real = images_of_folder(Path(path), model.shape, options.quiet)
        else:
            statistics = statistics_of(Path(path))
    of_data = data.fid_feature if data is not None and path is None else None
    name, network = build_features(
        chosen_feature(options.feature, model.shape, of_data, statistics, path), options.feature_weights
    )
    names = data.class_names if model.class_names is None and data is not None else model.class_names
    reads_own = reads_classes(name, names, model.num_classes)
    metrics = chosen_metrics(options.metrics, network, statistics, path, reads_own)
    if is_wanted and path is None:
        from diffusion_lightning.commands.real_images import images_of_data

        assert data is not None
        real = images_of_data(data, from_run=options.data is None)
    called = real.name if real is not None else path if statistics is not None else None
    if options.extrapolate and options.num < (least := least_samples(FEATURES[name].num_features)):
        raise UsageError(
            f"num={options.num}: must be at least {least} to extrapolate FID in the {FEATURES[name].num_features} "
            f"features {name}; or leave --extrapolate out"
        )
    return Comparison(name, network.to(model.device), metrics, called, real, statistics, options.extrapolate)


def _rows(options: Namespace, comparison: Comparison) -> int:
    """How many samples the picture of neighbours shows; 0: there is no picture."""
    if comparison.real is not None:
        return ROWS if options.neighbours is None else options.neighbours
    if options.neighbours:
        raise UsageError(
            f"neighbours={options.neighbours}: {options.reference} holds no images: give --data or a folder"
        )
    return 0


def _output(options: Namespace) -> Path:
    if options.output is not None:
        return Path(options.output)
    return (run_of(options.ckpt_path) or Path(options.ckpt_path).parent) / "evaluations"


def _folder_name(subjects: Sequence[Subject], comparison: Comparison, ways: Sequence[Way]) -> str:
    names = dict.fromkeys(type(way.sampler).__name__ for way in ways)
    steered_by = list(dict.fromkeys(name_of(way.guidance) or "" for way in ways))
    several = f"{steered_by[0].partition('(')[0]} {len(steered_by)} weights"
    guidance = steered_by[0] if len(steered_by) == 1 else several
    drawn_by = f"sweep {' '.join(names)} {len(ways)}" if len(ways) > 1 else label(ways[0].sampler)
    reference = Path(comparison.name).stem if comparison.name else ""
    subject, last = subjects[0], subjects[-1]
    seed = f"seed={subject.seed}" if last is subject else f"seeds={subject.seed}-{last.seed}"
    step, num = f"step={subject.origin['step']}", f"num={subject.num}"
    return folder_name(step, drawn_by, guidance, num, seed, comparison.feature, reference)


# ---- options


def evaluate_parser() -> OneLineParser:
    """The options of ``lightning evaluate``."""
    from diffusion_lightning.commands.real_images import add_data_option  # here, for it loads Lightning

    parser = OneLineParser(
        prog="lightning evaluate",
        description="FID, KID, Inception Score, precision and recall of a checkpoint's samples, by its EMA weights; "
        "and how many show what was asked for.",
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
    add_guidance_option(parser)
    parser.add_argument(
        "--sweep.guidance_weights",
        type=list[float] | None,
        default=None,
        help="Each sampler with each of these weights of --guidance, ClassifierFreeGuidance by default: '[1, 1.5, 2]'.",
    )
    parser.add_argument(
        "--metrics",
        type=list[MetricName] | None,
        default=None,
        help="'[fid, kid, is, precision_recall, agreement]'; all that features and reference allow by default.",
    )
    parser.add_argument(
        "--bits_per_dim", type=int | None, default=None, help="Also, on so many held-out examples, drawn by the seed."
    )
    add_data_option(parser, "Whose training images to compare with; by default those of the checkpoint's run.")
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
    parser.add_argument(
        "--extrapolate", type=bool, default=False, help="Also the FID of infinitely many samples, and its error."
    )
    parser.add_argument("--seed", type=int, default=0, help="Decides the samples and the metrics' subsets.")
    parser.add_argument(
        "--seeds", type=int, default=1, help="How many seeds, from that one on: mean and standard deviation over them."
    )
    parser.add_argument("--output", type=str | None, default=None, help="Folder; by default evaluations of the run.")
    add_drawing_options(parser)
    return parser


def _check_options(options: Namespace) -> None:
    """What can be seen to be wrong without opening anything."""
    if options.num < 2:
        raise UsageError(f"num={options.num}: must be at least 2, for there is no covariance of one image")
    for name, least in (("batch_size", 1), ("bits_per_dim", 1), ("neighbours", 0), ("seeds", 1)):
        if options[name] is not None and options[name] < least:
            raise UsageError(f"{name}={options[name]}: must be at least {least}")
    check_seed(seed=options.seed)
    check_seed(seed=options.seed + options.seeds - 1)
    if options.extrapolate and options.metrics is not None and "fid" not in options.metrics:
        raise UsageError(
            f"extrapolate: FID is not among --metrics {', '.join(options.metrics)}: add fid, or leave it out"
        )
    if options.metrics == []:
        raise UsageError("metrics=[]: name at least one; bits/dim alone: lightning likelihood")
    if options.data is not None and options.reference is not None and options.bits_per_dim is None:
        raise UsageError(f"reference={options.reference!r}: --data is given too: give one of them")
    for name in ("samplers", "steps", "guidance_weights"):
        if options.sweep[name] == []:
            raise UsageError(f"sweep.{name}=[]: name at least one")
    if options.sweep.samplers is not None and options.sampler is not None:
        raise UsageError("sampler: sweep.samplers are given too: give one of them")
    for steps in options.sweep.steps or []:
        if steps < 1:
            raise UsageError(f"sweep.steps={options.sweep.steps}: must be at least 1 each")
    for weight in options.sweep.guidance_weights or []:
        if not math.isfinite(weight):
            raise UsageError(f"sweep.guidance_weights={options.sweep.guidance_weights}: must be finite numbers")
    if options.export_reference is not None:
        path = Path(options.export_reference)
        if path.suffix != ".npz":
            raise UsageError(f"export_reference={str(path)!r}: must end in .npz")
        if path.exists():
            raise UsageError(f"export_reference={str(path)!r}: is there already: give another name")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"export_reference={str(path)!r}: its folder is not there")
