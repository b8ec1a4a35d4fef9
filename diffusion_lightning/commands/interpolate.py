"""`lightning interpolate`: from one picture to another through the latents of a trained model."""

import time
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.commands.asked import class_numbers
from diffusion_lightning.commands.drawing import add_drawing_options, load_on_device
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.images import image_grid, is_picture, write_gif, write_png
from diffusion_lightning.latents import interpolate
from diffusion_lightning.training.trained import TrainedModel

SECONDS, SECONDS_AT_ENDS = 0.12, 0.8
"""How long a frame of the animation is shown."""


def interpolate_command(args: list[str]) -> None:
    """Parse the options, encode, interpolate and decode, and write the animation and the strip.

    Args:
        args: the command line after ``lightning interpolate``.

    Raises:
        ValueError, OSError: for options, checkpoints, pictures or outputs that cannot be used.
    """
    options = interpolate_parser().parse_args(args)
    settle_guidance(options)
    given = interpolate_parser().instantiate(options)
    check_seed(seed=options.seed)
    if options.frames < 2:
        raise UsageError(f"frames={options.frames}: must be at least 2, the ends")
    output = Path(options.output)
    if output.suffix.lower() != ".gif":
        raise UsageError(f"output={str(output)!r}: must end in .gif; the strip is written beside it, as .png")
    if output.is_dir() or output.with_suffix(".png").is_dir():
        raise UsageError(f"output={str(output)!r}: it or the strip's name is a folder: give another name")

    model = load_on_device(find_checkpoint(options.ckpt_path), options.device, options.compile)
    if model.shape is None or not is_picture(model.shape):
        raise UsageError(f"ckpt_path: the model is of examples of shape {model.shape}: must be of pictures")
    label = None
    if options.label is not None:
        label = torch.tensor(class_numbers([options.label], model))
    generator = torch.Generator(model.device).manual_seed(options.seed)
    ends = [_end(options["from"], "from", model), _end(options.to, "to", model)]
    if missing := sum(end is None for end in ends):
        labels = None if label is None else label.tolist() * missing
        drawn = iter(model.sample(num=missing, labels=labels, generator=generator))
        ends = [next(drawn).cpu() if end is None else end for end in ends]
    first, last = (end[None] for end in ends if end is not None)
    denoiser = model.guided(given.guidance)
    cond = {}
    if label is not None:
        cond["labels"] = (label if model.groups is None else model.groups.draw(label, generator)).to(model.device)

    start = time.perf_counter()
    frames = interpolate(
        denoiser,
        first,
        last,
        options.frames,
        rtol=options.tolerance,
        atol=options.tolerance,
        progress=not options.quiet,
        **cond,
    )[:, 0].cpu()
    seconds = time.perf_counter() - start
    error = max((frames[0] - first[0]).abs().max().item(), (frames[-1] - last[0]).abs().max().item())

    scaled = frames.repeat_interleave(options.scale, -1).repeat_interleave(options.scale, -2)
    pictures = [image_grid(frame[None]) for frame in scaled]
    times = [SECONDS_AT_ENDS, *[SECONDS] * (len(pictures) - 2), SECONDS_AT_ENDS]
    # there and back
    write_gif(pictures + pictures[-2:0:-1], output, times + times[-2:0:-1])
    write_png(image_grid(scaled, across=len(scaled)), output.with_suffix(".png"))
    print(
        f"{len(frames)} frames in {seconds:.1f} s, the ends within {error:.2g} of what was given: {output}, "
        f"{output.with_suffix('.png')}"
    )


def interpolate_parser() -> OneLineParser:
    """The options of ``lightning interpolate``."""
    parser = OneLineParser(
        prog="lightning interpolate",
        usage="lightning interpolate --ckpt_path RUN_OR_FILE [--from a.png] [--to b.png] [--option value …]",
        description="Go from one picture to another through a model's latents: an animation and a strip.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument("--from", type=str | None, default=None, help="The first picture; drawn if left out.")
    parser.add_argument("--to", type=str | None, default=None, help="The last one; likewise.")
    parser.add_argument("--frames", type=int, default=16, help="How many, both ends among them.")
    parser.add_argument(
        "--label",
        type=int | str | None,
        default=None,
        help="The class that the model is told of all frames, by number or name; none if left out.",
    )
    add_guidance_option(parser, default=None)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="Of the solver: smaller is slower, and closer.")
    parser.add_argument("--seed", type=int, default=0, help="Decides the pictures that are drawn.")
    parser.add_argument("--output", type=str, default="interpolation.gif", help="x.gif; the strip is x.png beside it.")
    parser.add_argument("--scale", type=int, default=1, help="The side of the square that a pixel becomes.")
    add_drawing_options(parser)
    return parser


def _end(path: str | None, option: str, model: TrainedModel) -> Tensor | None:
    """The picture of one end, ``(C, H, W)``; None if none is named."""
    if path is None:
        return None
    assert model.shape is not None
    channels, height, width = model.shape
    if Path(path).is_dir():
        raise UsageError(f"{option}={path!r}: is a folder: give a picture")
    pictures = read_pictures(Path(path), channels, option)
    check_size(pictures, (height, width), option, "as the model's")
    return next(iter(pictures.values()))
