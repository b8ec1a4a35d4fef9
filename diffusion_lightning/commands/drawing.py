"""A checkpoint's model on its device, for every command that draws from one; and the options of how it draws."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.training.bf16 import bf16_if_units
from diffusion_lightning.training.compilation import Compile, compile_in_place
from diffusion_lightning.training.trained import TrainedModel

Precision = Literal["auto", "32-true"]


def add_drawing_options(parser: OneLineParser) -> None:
    """Add what every command takes that draws samples from a checkpoint: on what, how, and what is told of it."""
    parser.add_argument("--batch_size", type=int, default=256, help="How many are drawn at once.")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, …; the first GPU if any.")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="Of the network: auto is bf16 where the device has units for it, else float32.",
    )
    parser.add_argument(
        "--compile", type=Compile, default=False, help="The network first, for minutes: worth it for many samples."
    )
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")


def load_on_device(ckpt_path: str, device: str | None, compile: Compile = False) -> TrainedModel:
    """A checkpoint's model on the device of a ``--device`` option: by default the first GPU, if there is any.

    Raises:
        UsageError: if there is no such device.
        ValueError, OSError: if the checkpoint cannot be used.
    """
    model = TrainedModel.load(ckpt_path)
    wanted = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.Generator(wanted)  # some devices hold tensors and draw none
        model.denoiser.to(torch.device(wanted))
    except (RuntimeError, AssertionError) as error:  # of the latter type if torch was built without it
        raise UsageError(f"device={wanted!r}: cannot be used here: {str(error).splitlines()[0]}") from error
    compile_in_place(model.network, compile, model.device)
    return model


def drawing_context(precision: Precision, device: torch.device, tell: bool = True) -> AbstractContextManager:
    """What a network runs in at the precision of a ``--precision`` option; of ``auto`` a line may tell which it is."""
    return bf16_if_units(device.type, tell) if precision == "auto" else nullcontext()
