"""The options of Lightning's subcommands: their parser, and what neither their types nor Lightning keep in range."""

import inspect
import math
import pkgutil
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.training.module import ScoreModule

TRAINER_LEAST: dict[str, float] = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "min_epochs": 0,
    "min_steps": -1,
    "num_sanity_val_steps": -1,
}
"""The least that each of these options of the trainer can be; Lightning checks the others, and not these."""


class RunParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser, as strict as the others."""

    def class_of(self, path: list[str]) -> type | None:
        """Of ``model`` and ``trainer``, the options of a subcommand that are no choice."""
        return {"model": ScoreModule, "trainer": Trainer}.get(".".join(path))


def check_run(config: Namespace) -> None:
    """Look at the options of a run that neither their types nor Lightning keep within their ranges.

    Args:
        config: a parsed subcommand's options.

    Raises:
        UsageError: naming the first option that cannot be used.
    """
    check_seed(seed_everything=config.seed_everything)
    if config.run_name is not None:
        name = Path(config.run_name)
        if not name.parts or name.is_absolute() or ".." in name.parts or not config.run_name.isprintable():
            raise UsageError(f"run_name={config.run_name!r}: must be a name of a folder below trainer.default_root_dir")
    for section in ("trainer", "model", "data"):
        if config[section] is None:
            raise UsageError(f"option {section}: must not be null: leave it out for its default")
    for option, least in TRAINER_LEAST.items():
        value = config.trainer[option]
        if value is not None and not value >= least:
            raise UsageError(f"trainer.{option}={value}: must be at least {least}")
    time = config.trainer.max_time
    if isinstance(time, str) and not any(digit in time for digit in "123456789"):
        raise UsageError(f"trainer.max_time={time!r}: must be some time, as DD:HH:MM:SS, or null for no limit")
    if config.trainer.barebones:
        raise UsageError("trainer.barebones=True: has no logger, but every run of this command has one: leave it out")
    for option in ("optimizer", "lr_scheduler", "guidance"):
        made_by = config.model[option]
        # jsonargparse would call a function that is named here, with whatever arguments the config gives it
        path = made_by.class_path if isinstance(made_by, Namespace) else made_by and made_by.__qualname__
        if made_by is not None and (callable(made_by) or not inspect.isclass(pkgutil.resolve_name(path))):
            raise UsageError(f"model.{option}: {path} is a function: give a class")
        arguments = vars(made_by.get("init_args") or Namespace()) if isinstance(made_by, Namespace) else {}
        for argument, value in arguments.items():
            if isinstance(value, float) and math.isnan(value):  # which compares with no bound, and passes some checks
                raise UsageError(f"model.{option}.{argument}={value}: must be a number")
