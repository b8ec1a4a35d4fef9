"""`lightning interpolate`: from one picture to another through the latents of a trained model."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.commands.asked import class_numbers
from diffusion_lightning.commands.drawing import load_on_device
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.sample import check_writable
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.images import image_grid, is_picture, write_gif, write_picture
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
    for name, least in (("frames", 2), ("batch_size", 1), ("scale", 1)):
        if options[name] < least:
            raise UsageError(f"{name}={options[name]}: must be at least {least}")
    if not 0 < options.tolerance < 1:
        raise UsageError(f"tolerance={options.tolerance}: must be above 0 and below 1")
    output = Path(options.output)
    strip = output.with_suffix(".png")
    if output.suffix.lower() != ".gif":
        raise UsageError(f"output={options.output!r}: must end in .gif; the strip is written beside it, as .png")

    model = load_on_device(find_checkpoint(options.ckpt_path), options.device)
    if model.shape is None or not is_picture(model.shape):
        raise UsageError(f"ckpt_path: the model is of examples of shape {model.shape}: must be of pictures")
    denoiser = model.guided(given.guidance)
    generator = torch.Generator(model.device).manual_seed(options.seed)
    told = _told(options.labels, model, generator)
    ends = [_picture(options["from"], "from", model), _picture(options.to, "to", model)]
    for file in (output, strip):
        check_writable(file)

    start = time.perf_counter()
    for i, end in enumerate(ends):
        if end is None:
            shape = (1, *model.shape)
            ends[i] = model.sampler(denoiser, shape, generator=generator, progress=not options.quiet, **told[i])
    first, last = (end.cpu() for end in ends if end is not None)
    cond: dict[str, Any] = {name: value for name, value in told[0].items() if value.equal(told[1][name])}
    cond |= {name: (value, told[1][name]) for name, value in told[0].items() if name not in cond}
    frames = interpolate(
        denoiser,
        first,
        last,
        options.frames,
        rtol=options.tolerance,
        atol=options.tolerance,
        batch_size=options.batch_size,
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
    write_picture(image_grid(frames, across=len(frames)), strip, options.scale)
    print(
        f"{len(frames)} frames in {seconds:.1f} s, EMA weights, the ends within {127.5 * error:.1f} of 255 levels of "
        f"what was given: {output}, {strip}"
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
        "--labels",
        type=list[int | str] | None,
        default=None,
        help="The class of both pictures, or of each, by number or name; not told if left out.",
    )
    add_guidance_option(parser, default=None)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="Of the solver: smaller is slower, and closer.")
    parser.add_argument("--seed", type=int, default=0, help="Decides the pictures that are drawn.")
    parser.add_argument("--output", type=str, default="interpolation.gif", help="x.gif; the strip is x.png beside it.")
    parser.add_argument("--scale", type=int, default=1, help="The side of the square that a pixel becomes.")
    parser.add_argument("--batch_size", type=int, default=256, help="How many frames are decoded at once.")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, …; the first GPU if any.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _told(labels: Sequence[int | str] | None, model: TrainedModel, generator: torch.Generator) -> list[dict[str, Any]]:
    """What the model is told of each end."""
    if labels is not None and len(labels) > 2:
        raise UsageError(f"labels={list(labels)}: must be one for both pictures, or one for each")
    needed = taken_by(model.network) if model.condition_dropout == 0 else ()
    if others := [name for name in needed if name != "labels"]:
        raise UsageError(f"ckpt_path: the model is told {', '.join(others)}, and was never without: it cannot be used")
    if labels is None and needed and model.has_classes:
        raise UsageError("labels: the model was never without a class: give one for both pictures, or one for each")
    if labels is None and not needed:
        return [{}, {}]
    numbers = class_numbers(labels, model) if labels is not None else [0]  # of groups that are of no classes
    classes = torch.tensor(numbers, device=model.device).expand(2)
    rows = classes if model.groups is None else model.groups.draw(classes, generator)
    return [{"labels": row} for row in rows.split(1)]


def _picture(path: str | None, option: str, model: TrainedModel) -> Tensor | None:
    """The picture of one end, ``(1, C, H, W)``; None if none is named."""
    if path is None:
        return None
    assert model.shape is not None
    channels, height, width = model.shape
    if Path(path).is_dir():
        raise UsageError(f"{option}={path!r}: is a folder: give a picture")
    pictures = read_pictures(Path(path), channels, option)
    check_size(pictures, (height, width), option, "as the model's")
    return torch.stack([*pictures.values()])
