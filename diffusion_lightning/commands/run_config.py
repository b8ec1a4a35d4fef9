"""What a run is, in its folder: the resolved config and where it was started."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from diffusion_lightning.disk import replace_keeping
from diffusion_lightning.loggers import RunLogger
from diffusion_lightning.loggers.environment import describe_environment


class RunConfig(SaveConfigCallback):
    """Writes what a run is to its folder and the loggers: the resolved ``config.yaml``, and ``environment.yaml``.

    On a resume the former ones are kept. The loggers get all but the list of packages, which W&B has by itself.

    Args:
        args: of SaveConfigCallback.
        command: the command line.
        kwargs: of SaveConfigCallback.
    """

    def __init__(self, *args: Any, command: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, save_to_log_dir=False)  # type: ignore[misc]
        self.command = command

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """As Lightning's, which saves now; a metric that will never come is told before."""
        if stage == "fit":
            pl_module.watchers.begin(trainer, pl_module)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lightning calls it on rank zero."""
        config = self.config.clone()
        config["ckpt_path"] = None  # a saved config describes the run, not how this part of it was started
        text = self.parser.dump(config, skip_none=False)
        run_logger, *others = trainer.loggers
        assert isinstance(run_logger, RunLogger)
        environment = describe_environment(self.command, trainer.strategy.root_device, trainer.world_size)
        folder = Path(run_logger.log_dir)
        # whole at any moment: a killed run is resumed by it
        replace_keeping(folder / "config.yaml", text)
        started_in = yaml.safe_dump(environment, sort_keys=False, allow_unicode=True, width=sys.maxsize)
        replace_keeping(folder / "environment.yaml", started_in)
        del environment["packages"]
        for logger in others:
            logger.log_hyperparams({"config": yaml.safe_load(text), "environment": environment})
