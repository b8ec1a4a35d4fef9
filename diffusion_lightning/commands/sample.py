"""`lightning sample`: pictures from a checkpoint, and nothing else needed."""

import time
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.commands.asked import asked_for
from diffusion_lightning.commands.drawing import add_drawing_options, drawing_context, load_on_device
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.images import FORMATS, image_grid, is_picture, points_picture, to_uint8, write_picture
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import broken_samples, count_broken, warn_of_broken
from diffusion_lightning.training.guided import name_of


def sample_command(args: list[str]) -> None:
    """Parse the options, draw the samples, write them, and print images/s and NFE.

    Args:
        args: the command line after ``lightning sample``.

    Raises:
        ValueError, OSError: for options, checkpoints or outputs that cannot be used.
    """
    options = sample_parser().parse_args(args)
    settle_guidance(options)
    given = sample_parser().instantiate(options)
    if options.num is not None and options.num < 1:
        raise UsageError(f"num={options.num}: at least 1 sample must be asked for")
    if options.batch_size < 1:
        raise UsageError(f"batch_size={options.batch_size}: must be at least 1")
    check_seed(seed=options.seed)
    output = Path(options.output)
    if output.suffix not in ("", ".npz") and output.suffix.lower() not in FORMATS:
        raise UsageError(
            f"output={str(output)!r}: must end in .png (a grid; {', '.join([*FORMATS][1:])} likewise) or .npz, or be a "
            "folder (single pictures)"
        )
    if options.scale < 1 or (options.scale > 1 and output.suffix == ".npz"):
        least = "must be at least 1" if options.scale < 1 else f"{output} holds numbers, no pictures: leave it out"
        raise UsageError(f"scale={options.scale}: {least}")

    model = load_on_device(find_checkpoint(options.ckpt_path), options.device, options.compile)
    sampler = given.sampler if given.sampler is not None else model.sampler
    sampler.check(model.denoiser.sde)
    model.guided(given.guidance)  # what is wrong with it is told before the work
    _check_form(output, model.shape)
    if model.shape is not None and len(model.shape) != 3 and options.scale > 1:
        raise UsageError(f"scale={options.scale}: points are plotted, and have no pixels: leave it out")
    check_writable(output)
    num, asked = asked_for(options.labels, options.condition, options.num, model)

    generator = torch.Generator(model.device).manual_seed(options.seed)
    start = time.perf_counter()
    with drawing_context(options.precision, model.device):
        samples = model.sample(
            sampler,
            num,
            generator=generator,
            condition=asked,
            guidance=given.guidance,
            batch_size=options.batch_size,
            progress=not options.quiet,
        ).cpu()
    seconds = time.perf_counter() - start

    broken = count_broken(samples)
    if broken == num:
        raise FloatingPointError(f"{broken_samples(broken, num)}: nothing is written")
    warn_of_broken(broken, num, _shown(samples, output))
    _write(samples, output, options.scale)
    drawn_by = ", ".join(filter(None, (type(sampler).__name__, name_of(model.own_or(given.guidance)))))
    print(
        f"{num} samples in {seconds:.1f} s ({num / seconds:.1f} images/s), "
        f"{drawn_by}, {sampler.nfe} NFE, EMA weights: {output}"
    )


def sample_parser() -> OneLineParser:
    """The options of ``lightning sample``."""
    parser = OneLineParser(
        prog="lightning sample",
        usage="lightning sample --ckpt_path RUN_OR_FILE [--num N] [--output FILE] [--sampler CLASS] [--option value …]",
        description="Draw samples from a checkpoint with its EMA weights.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument(
        "--num",
        type=int | None,
        default=None,
        help="How many samples, 64 by default; with --condition of each of its rows, 1 by default.",
    )
    parser.add_argument(
        "--sampler", type=Sampler | None, default=None, help="Heun, PredictorCorrector, …; the checkpoint's by default."
    )
    add_guidance_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="Decides the samples.")
    parser.add_argument(
        "--output",
        type=str,
        default="samples.png",
        help="x.png, .jpg or .webp (a grid, or a plot of points), a folder (single PNGs) or x.npz (uint8 NHWC; no "
        "picture: as it is).",
    )
    parser.add_argument("--scale", type=int, default=1, help="The side of the square that a pixel of pictures becomes.")
    parser.add_argument(
        "--labels", type=list[int | str] | None, default=None, help="Classes, by number or name, repeated in turn."
    )
    parser.add_argument(
        "--condition",
        type=str | None,
        default=None,
        help="x.csv (columns as in the training data, and label) or x.npz (arrays vector, picture, tokens, labels).",
    )
    add_drawing_options(parser)
    return parser


def check_writable(output: Path) -> None:
    """Fail before the work, not after it."""
    folder = output if output.suffix == "" else output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output={str(output)!r}: no folder can be made there ({error.strerror})") from error
    if output.suffix != "" and output.is_dir():
        raise UsageError(f"output={str(output)!r}: is a folder: give a file, or a folder's name without a suffix")
    if output.suffix == "" and any(folder.glob("*.png")):
        raise UsageError(f"output={str(output)!r}: this folder already holds pictures: give another one")


def _shown(samples: Tensor, output: Path) -> str:
    """What becomes of samples that are not finite."""
    if samples.ndim == 4:
        return f"{output} shows each as a tile with a cross"
    return f"{output} leaves them out" if output.suffix != ".npz" else f"{output} holds them as they are"


def _check_form(output: Path, shape: tuple[int, ...] | None) -> None:
    """Raise a UsageError if samples of this shape cannot be written in that form."""
    if shape is None or output.suffix == ".npz" or is_picture(shape) or (shape == (2,) and output.suffix != ""):
        return
    if shape == (2,):
        raise UsageError(f"output={str(output)!r}: points are written as .png (a plot) or .npz, not as single pictures")
    raise UsageError(
        f"output={str(output)!r}: a sample has the shape {shape}, and pictures have 1 or 3 channels: give --output "
        f"{output.with_suffix('.npz')}"
    )


def _write(samples: Tensor, output: Path, scale: int) -> None:
    match output.suffix:
        case ".npz":
            import numpy as np

            arrays = to_uint8(samples).permute(0, 2, 3, 1) if is_picture(samples.shape[1:]) else samples
            np.savez_compressed(output, samples=arrays.numpy())
        case "":
            for index, picture in enumerate(to_uint8(samples)):
                write_picture(picture, output / f"{index:06d}.png", scale)
        case _:
            write_picture(image_grid(samples) if samples.ndim == 4 else points_picture(samples), output, scale)
