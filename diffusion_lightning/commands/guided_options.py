"""The option ``--guidance``, which every command that draws samples spells alike."""

import pkgutil
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from diffusion_lightning.commands.run_folder import find_checkpoint
from diffusion_lightning.guidance import AutoGuidance
from diffusion_lightning.training.guided import GuidanceChoice


def add_guidance_option(parser: ArgumentParser) -> None:
    """Add ``--guidance``: a class and its arguments, null, or the model's own."""
    parser.add_argument(
        "--guidance",
        type=GuidanceChoice,
        default="own",
        help="ClassifierFreeGuidance, AutoGuidance, …, and --guidance.weight; null: none; the checkpoint's by default.",
    )


def find_worse(options: Any) -> None:
    """Put in place of each run's folder that is given as ``worse`` its newest checkpoint, wherever it stands.

    Raises:
        FileNotFoundError, ValueError: if there is none, or none is intact.
    """
    if isinstance(options, list):
        for item in options:
            find_worse(item)
    if not isinstance(options, Namespace):
        return
    arguments = options.get("init_args")
    worse = arguments.get("worse") if isinstance(arguments, Namespace) else None
    if isinstance(worse, str) and issubclass(pkgutil.resolve_name(options.class_path), AutoGuidance):
        arguments.worse = find_checkpoint(worse, option="guidance.worse")
    for item in vars(options).values():
        find_worse(item)
