"""`lightning restore`: what was it? Answers to pictures of which something was measured, by a trained model."""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lightning.commands.asked import class_numbers
from diffusion_lightning.commands.drawing import add_drawing_options, drawing_context, load_on_device
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.restoration_scores import write_scores
from diffusion_lightning.commands.restoration_tasks import MASKS, Measuring, Task, measuring
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.guidance import ClassifierFreeGuidance
from diffusion_lightning.images import image_grid, is_picture, to_uint8, write_picture
from diffusion_lightning.inverse import METHODS, Operator, restore
from diffusion_lightning.inverse.restore import STEPS, is_sampler
from diffusion_lightning.inverse.strips import tiles
from diffusion_lightning.randomness import Stream, derive_seed
from diffusion_lightning.samplers import DPMSolverPlusPlus, Sampler
from diffusion_lightning.training.broken_samples import broken_samples, count_broken
from diffusion_lightning.training.trained import TrainedModel


def restore_command(args: list[str]) -> None:
    """Parse the options, draw the answers, write strips, pictures and scores, and print what it took.

    Args:
        args: the command line after ``lightning restore``.

    Raises:
        ValueError, OSError: for options, checkpoints, pictures or outputs that cannot be used.
    """
    options = restore_parser().parse_args(args)
    settle_guidance(options)
    given = restore_parser().instantiate(options)
    check_seed(seed=options.seed)
    for name in ("num", "batch_size", "scale"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name}={getattr(options, name)}: must be at least 1")
    if not (options.noise >= 0 and math.isfinite(options.noise)):
        raise UsageError(f"noise={options.noise}: must be zero (no noise) or above")
    if options.method not in METHODS:
        raise UsageError(f"method={options.method!r}: must be one of {', '.join(METHODS)}")
    if given.sampler is not None and is_sampler(options.method):
        raise UsageError(f"sampler: {options.method} draws by itself: leave it out")
    if options.simulate and options.truth is not None:
        raise UsageError("truth: with --simulate the pictures of --input are the truth: leave it out")

    model = load_on_device(find_checkpoint(options.ckpt_path), options.device, options.compile)
    if model.shape is None or not is_picture(model.shape):
        raise UsageError(f"ckpt_path: the model is of examples of shape {model.shape}: must be of pictures")
    task = measuring(
        options.task,
        model.shape,
        options.mask,
        options.factor,
        options.sigma,
        options.window,
        given.operator,
        # what is measured has nothing to do with how the answers are drawn
        derive_seed(options.seed, 0, Stream.MEASUREMENT),
    )
    names, y, truth = _measured(options, task, model)
    if truth is not None and "calibration" in names:
        raise UsageError("input: calibration.png will hold the ranks of the truth: rename the picture of that name")
    classes = _classes(options.labels, len(names), model)
    output = _free(Path(options.output))
    denoiser = model.guided(given.guidance)
    if classes is None and isinstance(denoiser, ClassifierFreeGuidance):
        raise UsageError("guidance: is towards a class, and none is asked for: give --labels, or leave guidance out")
    sampler = None if is_sampler(options.method) else given.sampler or DPMSolverPlusPlus(STEPS)

    generator = torch.Generator(model.device).manual_seed(options.seed)
    told = {}
    if classes is not None:
        each = classes.repeat(options.num).to(model.device)
        told["labels"] = each if model.groups is None else model.groups.draw(each, generator)
    start = time.perf_counter()
    with drawing_context(options.precision, model.device):
        answers = restore(
            denoiser,
            y.repeat(options.num, *[1] * (y.ndim - 1)),  # so that each answer may be told a group of its own
            task.operator.to(model.device),
            options.method,
            1,
            sampler,
            options.noise,
            generator,
            batch_size=options.batch_size,
            progress=not options.quiet,
            **told,
        ).cpu()
    seconds = time.perf_counter() - start
    answers = answers.reshape(options.num, len(names), *model.shape)
    operator, y = task.operator.cpu(), y.cpu()
    if broken := count_broken(answers.flatten(0, 1)):
        raise FloatingPointError(f"{broken_samples(broken, answers[:, :, 0].numel())}: nothing is written")

    for i, name in enumerate(names):
        own = truth[i] if truth is not None else None
        write_picture(strip(y[i], answers[:, i], own, operator), output / f"{name}.png", options.scale)
        for number, answer in enumerate(to_uint8(answers[:, i])):
            write_picture(answer, output / name / f"{number:03d}.png")
    scores = write_scores(names, answers, y, truth, operator, options.noise, model, output)
    total = options.num * len(names)
    cost = f", {sampler.nfe} evaluations each (forward passes and vector–Jacobian products)" if sampler else ""
    print(
        f"{len(names)} pictures, {total} answers in {seconds:.1f} s ({total / seconds:.1f} answers/s), "
        f"{options.method}{cost}: {output}{scores}"
    )


def restore_parser() -> OneLineParser:
    """The options of ``lightning restore``."""
    parser = OneLineParser(
        prog="lightning restore",
        usage="lightning restore --ckpt_path RUN_OR_FILE --task TASK --input PICTURES [--option value …]",
        description="Fill in, colour, enlarge or sharpen pictures with a trained model: several answers to each.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument("--task", type=Task, required=True, help="What is to be done.")
    parser.add_argument(
        "--input",
        type=str,
        required=True,
        help="A picture or a folder of them, as measured: damaged, grey, small, blurred or cut out.",
    )
    parser.add_argument(
        "--simulate",
        type=bool,
        default=False,
        help="Whether --input holds whole pictures, which are measured first, with noise; they are the truth, too.",
    )
    parser.add_argument(
        "--truth", type=str | None, default=None, help="A folder of the whole pictures, by their names."
    )
    parser.add_argument(
        "--mask",
        type=str | None,
        default=None,
        help=f"For inpaint: what is to be filled in, {MASKS} (white there); center by default.",
    )
    parser.add_argument(
        "--factor", type=int | None, default=None, help="For upscale: how many times as wide and high, 2 by default."
    )
    parser.add_argument(
        "--sigma", type=float | None, default=None, help="For deblur: of the Gaussian, 1 pixel by default."
    )
    parser.add_argument(
        "--window",
        type=tuple[int, int] | None,
        default=None,
        help="For outpaint: [rows, columns] given, in the middle; half of both by default.",
    )
    parser.add_argument(
        "--operator", type=Operator | None, default=None, help="For custom: MotionBlur, Fourier, Function, …"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="Standard deviation of the measurement's noise; pictures are in [-1, 1].",
    )
    parser.add_argument("--method", type=str, default="MMPS", help=f"{', '.join(METHODS)}: docs/inverse.md.")
    parser.add_argument("--num", type=int, default=8, help="Answers to each picture.")
    parser.add_argument(
        "--sampler", type=Sampler | None, default=None, help=f"Draws; DPMSolverPlusPlus of {STEPS} steps by default."
    )
    add_guidance_option(parser, default=None)
    parser.add_argument(
        "--labels",
        type=list[int | str] | None,
        default=None,
        help="The class of each picture, or one for all; not told if left out.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Decides the answers, a random mask and simulated noise.")
    parser.add_argument("--output", type=str, default="restored", help="A folder, which holds no pictures yet.")
    parser.add_argument("--scale", type=int, default=1, help="The side of the square that a pixel of strips becomes.")
    add_drawing_options(parser)
    return parser


def strip(y: Tensor, answers: Tensor, truth: Tensor | None, operator: Operator) -> Tensor:
    """Given | answers | their mean | their standard deviation | the truth if known; uint8 ``(3, H', W')``.

    Args:
        y: what was measured, ``(C', …)``; shown as it is if it is a picture, else by its adjoint.
        answers: ``(num, C, H, W)``.
        truth: ``(C, H, W)``.
        operator: A.
    """
    shape = answers.shape[1:]
    shown = y if y.ndim == 3 and y.shape[0] in (1, 3) else operator.pseudo_inverse(y[None])[0]
    if shown.shape[1:] != shape[1:]:
        whole = [n // m for n, m in zip(shape[1:], shown.shape[1:], strict=True)]
        if [m * w for m, w in zip(shown.shape[1:], whole, strict=True)] == list(shape[1:]):
            shown = F.interpolate(shown[None], tuple(shape[1:]), mode="nearest")[0]
        else:
            shown = operator.adjoint(y[None])[0]
    shown = tiles(shown, answers, truth)
    return image_grid(shown, across=len(shown))


def _measured(options: Any, task: Measuring, model: TrainedModel) -> tuple[list[str], Tensor, Tensor | None]:
    """The names of the pictures, what was measured of each, and the truth if it is known."""
    assert model.shape is not None
    channels, size = model.shape[0], (model.shape[1], model.shape[2])
    if options.simulate:
        pictures = read_pictures(Path(options.input), channels, "input")
        check_size(pictures, size, "input", "as the model's")
        truth = torch.stack([*pictures.values()])
        generator = torch.Generator().manual_seed(derive_seed(options.seed, 1, Stream.MEASUREMENT))
        return [*pictures], task.operator.measure(truth, options.noise, generator), truth
    if task.size is None:
        raise UsageError(
            f"input: {type(task.operator).__name__} makes no pictures: give whole ones, and --simulate true"
        )
    given = read_pictures(Path(options.input), task.channels, "input")
    way_out = f"{task.why}; whole pictures are measured first by --simulate true"
    check_size(given, task.size, "input", way_out)
    y = torch.stack([*given.values()])
    y = task.operator(y) if options.task == "inpaint" else y  # whatever stands where the picture is missing
    if options.truth is None:
        return [*given], y, None
    pictures = read_pictures(Path(options.truth), channels, "truth")
    if missing := [name for name in given if name not in pictures]:
        raise UsageError(f"truth={options.truth!r}: has no {missing[0]}, which --input has")
    check_size(pictures, size, "truth", "as the model's")
    return [*given], y, torch.stack([pictures[name] for name in given])


def _classes(labels: list[int | str] | None, count: int, model: TrainedModel) -> Tensor | None:
    """The class that the model is told of each picture, ``(count,)``; None if none."""
    needed = taken_by(model.network) if model.condition_dropout == 0 else ()
    if others := [name for name in needed if name != "labels"]:
        raise UsageError(f"ckpt_path: the model is told {', '.join(others)}, and was never without: it cannot be used")
    if labels is None and needed:
        raise UsageError("labels: the model was never without a class: give one for all pictures, or one for each")
    if labels is None:
        return None
    if len(labels) not in (1, count):
        raise UsageError(f"labels={labels}: {len(labels)} for {count} pictures: must be one for each, or one for all")
    return torch.tensor(class_numbers(labels, model)).expand(count)


def _free(output: Path) -> Path:
    """A folder in which nothing is overwritten."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"output={str(output)!r}: is a file: give a folder")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"output={str(output)!r}: this folder is not empty: give another one")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output={str(output)!r}: no folder can be made there ({error.strerror})") from error
    return output
