"""The option ``--guidance``, which every command that draws samples spells alike."""

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from diffusion_lightning.commands.run_folder import find_checkpoint
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.recipe import check_classes


def add_guidance_option(parser: ArgumentParser, default: str | None = "own") -> None:
    """Add ``--guidance``: a class and its arguments, null, or the model's own."""
    usual = "the checkpoint's" if default == "own" else "none"
    parser.add_argument(
        "--guidance",
        type=GuidanceChoice,
        default=default,
        help=f"ClassifierFreeGuidance, AutoGuidance, …, and --guidance.weight; null: none; {usual} by default.",
    )


def settle_guidance(options: Any) -> None:
    """Look at guidance wherever it stands in parsed options: a run's folder as ``worse`` becomes its newest checkpoint.

    Raises:
        UsageError: if it names a function, for that would be called, and a config is data.
        FileNotFoundError, ValueError: if a folder holds no checkpoint, or none that is intact.
    """
    if isinstance(options, list):
        for item in options:
            settle_guidance(item)
    if not isinstance(options, Namespace):
        return
    for name, value in vars(options).items():
        if name == "guidance" and isinstance(value, Namespace):
            _settle(value)
        settle_guidance(value)


def _settle(guidance: Namespace) -> None:
    try:
        check_classes(guidance.as_dict())
    except ValueError as error:
        raise UsageError(f"guidance: {error}") from error
    arguments = guidance.get("init_args") or Namespace()
    if isinstance(arguments.get("worse"), str):
        arguments.worse = find_checkpoint(arguments.worse, option="guidance.worse")
