"""`lightning fit`, `validate`, `test` and `predict`: LightningCLI with a folder for every run."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import diffusion_lightning.networks  # noqa: F401 — so that its classes are known by their short names
from diffusion_lightning.callbacks import FIDCallback, RunReport
from diffusion_lightning.callbacks.graceful_stop import Stopped
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.commands import default_parts
from diffusion_lightning.commands.default_parts import as_list
from diffusion_lightning.commands.dry_run import TRIAL_STEPS, Length, dry_run
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.manual import SCREENS
from diffusion_lightning.commands.quiet import silence_lightning
from diffusion_lightning.commands.resumption import (
    SLURM_JOB,
    Resumed,
    find_resumed,
    longer,
    resume_command,
    slurm_job,
)
from diffusion_lightning.commands.run_config import RunConfig
from diffusion_lightning.commands.run_options import RunParser, check_run
from diffusion_lightning.commands.usage import UsageError, explain
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.loggers import RunLogger, TensorBoardLogger, WandbLogger
from diffusion_lightning.loggers.guest import as_guest
from diffusion_lightning.loggers.tensorboard_logger import go_on
from diffusion_lightning.messages import is_first_process, warn
from diffusion_lightning.tables import print_table
from diffusion_lightning.training import precision
from diffusion_lightning.training.module import ScoreModule


def run_subcommand(args: list[str] | None = None) -> None:
    """Run a subcommand of Lightning's.

    Args:
        args: the command line, with the subcommand; the process's own if left out.

    Raises:
        UsageError, ValueError, OSError, …: for what cannot be used.
    """
    silence_lightning()
    try:
        DiffusionCLI(args)
    except MisconfigurationException as error:
        raise UsageError(explain(str(error))) from error


class DiffusionCLI(LightningCLI):
    """LightningCLI with a folder for every run.

    ``fit`` writes to ``<trainer.default_root_dir>/<run_name>/version_<n>``, by default below ``runs``. With
    ``--ckpt_path`` it continues in the folder of that checkpoint's run.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.resumed = Resumed()
        self._given = sys.argv[1:] if args is None else args
        super().__init__(
            model_class=ScoreModule,
            datamodule_class=LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"command": ["lightning", *self._given]},
            trainer_class=precision.Trainer,
            trainer_defaults={"default_root_dir": "runs", "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=RunParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={command: {"usage": SCREENS[command]} for command in self.subcommands()},
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: collecting the options of each takes a while."""
        known = LightningCLI.subcommands()
        return {word: known[word] for word in self._given[:1] if word in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_name", type=str | None, default=None, help="Name of the run; by default the config file's."
        )
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **{**kwargs, "description": None})
        if subcommand == "fit":
            parser.add_argument(
                "--dry_run",
                action="store_true",
                default=argparse.SUPPRESS,  # no part of a config
                help="Print the resolved config, and what the training would be and take, by a few steps; and stop.",
            )
        if subcommand == "predict":
            add_guidance_option(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI's; what is wrong is told before the seed is set or anything is made."""
        super().parse_arguments(parser, args)
        unread = sorted(name for name in os.environ if name.startswith(f"PL_{self.config.subcommand.upper()}__"))
        if unread:
            warn(
                f"{', '.join(unread)}: environment variables are no options here, and are not read: "
                "give options on the command line or in a config"
            )
        check_run(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would overwrite the config with the checkpoint's; ours checks that the two agree."""

    def before_instantiate_classes(self) -> None:
        """Settle the run's name, and what is resumed."""
        config = self.config[self.subcommand]
        if self._is_dry():
            self._shorten(config)
        files = [Path(str(path)) for path in config.get("config") or []]
        settle_guidance(config)
        if config.run_name is None:
            config.run_name = files[0].stem if files else "run"
        self.resumed = find_resumed(config, files, self.subcommand == "fit", self._is_dry())
        if self.subcommand != "fit" and config.ckpt_path is None:
            warn("no --ckpt_path: this is of the network as the config makes it, without any training")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, its checkpoints, the progress bar and the report, unless the config has its own."""
        if self.resumed.checkpoint:
            # now, before the run's folder gets the config of a network that its checkpoints are not of
            try:
                self.model.check_network(self.resumed.checkpoint)
            except ValueError as error:
                raise UsageError(f"ckpt_path={self.config[self.subcommand].ckpt_path!r}: {error}") from error
            if self.subcommand == "fit":
                self.model.check_resume(self.resumed.checkpoint)
        if self.subcommand == "fit":
            self._try_optimizer()
        config = self._get(self.config_init, "trainer")
        callbacks = config["callbacks"] = as_list(config["callbacks"])
        if self.subcommand != "predict":
            self._check_parts(callbacks)
        if config["enable_progress_bar"] is not False:
            default_parts.add_progress_bar(callbacks)
        if self.subcommand == "predict":
            self.model.guidance = self.model.own_or(self._get(self.config_init, "guidance"))
            self.model.guided()  # what is wrong with it is told before the work
            default_parts.add_sample_writer(callbacks)
        if self.subcommand != "fit":
            kwargs.update(logger=False, enable_checkpointing=False)
            if self.resumed.folder is not None:
                kwargs["default_root_dir"] = str(self.resumed.folder)
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)

        if config["enable_checkpointing"] is not False:
            default_parts.add_checkpoints(callbacks)
        if config["enable_model_summary"] is not False:
            default_parts.add_summary(callbacks)
        default_parts.add_stop_and_report(callbacks)
        plugins = as_list(config["plugins"])
        default_parts.add_checkpoint_io(plugins)
        return self._trainer_of_run(config, plugins=plugins, **kwargs)

    def _trainer_of_run(self, config: Any, **kwargs: Any) -> Trainer:
        """The trainer of a training, after its run has got a folder."""
        name = self.config[self.subcommand].run_name
        given = config["logger"]
        others = [] if given in (None, True, False) else as_list(given)
        self.run_logger = RunLogger(config["default_root_dir"], name, self.resumed.folder, self.resumed.step)
        folder = Path(self.run_logger.log_dir)
        job = slurm_job()
        if job is not None and not config["fast_dev_run"]:
            # where Lightning saves when SLURM announces the end of the job's time; another job must not find it
            kwargs["default_root_dir"] = str(folder)
            rank_zero_only((folder / SLURM_JOB).write_text)(job)
        try:
            trainer = super().instantiate_trainer(logger=[self.run_logger, *map(as_guest, others)], **kwargs)
        except Exception:
            self.run_logger.withdraw()
            raise
        if trainer.is_global_zero and not config["fast_dev_run"]:
            for logger in others:
                run_id = self.resumed.run_ids.get(type(logger).__name__)
                if isinstance(logger, WandbLogger):
                    logger.belong_to(self.run_logger, run_id)
                if isinstance(logger, TensorBoardLogger):
                    logger.belong_to(self.run_logger)
                if isinstance(logger, LightningTensorBoardLogger) and run_id is not None:
                    go_on(logger, run_id, self.resumed.step, self.resumed.logged)
        return trainer

    def _is_dry(self) -> bool:
        return "dry_run" in self.config[self.subcommand]

    def _shorten(self, config: Any) -> None:
        """Print the config, and make of it that of a trial of a few steps."""
        trainer = config.trainer
        self.length = Length(
            trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches, trainer.accumulate_grad_batches
        )
        meant = config.clone()
        del meant["dry_run"]
        print(self._parser(self.subcommand).dump(meant))
        trainer.fast_dev_run, trainer.limit_val_batches = TRIAL_STEPS, 1
        trainer.enable_progress_bar = trainer.enable_model_summary = False

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            if self._is_dry():
                try:
                    rows = dry_run(self.trainer, self.model, self.datamodule, self.length)
                finally:
                    self.run_logger.withdraw()
                if self.trainer.is_global_zero:
                    print_table("Dry run", ("what", "how much"), rows)
                return
            with self._withdrawing():
                super()._run_subcommand(subcommand)
        except Stopped as stopped:
            if stopped.is_launched:
                sys.exit(0)  # with another code the process that started this one would be killed while it tidies up
            if self.trainer.is_global_zero:
                done = "saved" if stopped.saved else "which is not saved"
                print(
                    f"lightning: {stopped} ({done}); resume: {resume_command(Path(self.run_logger.log_dir))}",
                    file=sys.stderr,
                )
            sys.exit(128 + stopped.signum)
        # before training has begun only Lightning looks for signals
        except SIGTERMException:
            sys.exit(128 + signal.SIGTERM)
        except SystemExit:
            if self.trainer.interrupted:
                sys.exit(128 + signal.SIGINT)
            raise

    @contextmanager
    def _withdrawing(self) -> Iterator[None]:
        """Inside, a fit that ends before its first step leaves no folder behind, for there is no run to go on with."""
        try:
            yield
        except Stopped:
            raise
        except BaseException:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total
            if self.subcommand == "fit" and not done.processed:  # type: ignore[attr-defined]
                for logger in self.trainer.loggers:
                    if isinstance(logger, WandbLogger):
                        logger.leave()  # or it would write on
                self.run_logger.withdraw()
            raise

    def _check_parts(self, callbacks: Sequence[Any]) -> None:
        """See that data, network and what draws samples fit each other, as the trainer will once a run has begun."""
        if is_first_process():  # from which the others learn later what classes a folder holds
            self.model.check_data(self.datamodule, is_new=self.subcommand == "fit" and not self.resumed.checkpoint)
        for callback in callbacks:
            if isinstance(callback, SamplingCallback) and not self._is_dry():  # a dry run draws nothing
                if isinstance(callback, FIDCallback) and self.resumed.checkpoint:
                    callback.go_on_from(self.resumed.checkpoint, self.model, self.datamodule)
                callback.check(self.model, self.datamodule)

    def _try_optimizer(self) -> None:
        """Make an optimizer and its scheduler once, as the trainer will only after the run has its folder."""
        try:
            self.model.configure_optimizers()
        except (ValueError, TypeError) as error:
            raise UsageError(f"model.optimizer or model.lr_scheduler: {explain(str(error))}") from error

    @rank_zero_only
    def after_fit(self) -> None:
        """Tell what there is now and what can be done with it."""
        if self._get(self.config, "trainer").fast_dev_run:
            return
        folder = Path(self.run_logger.log_dir)
        last = folder / "checkpoints" / "last.ckpt"
        pictures = sorted((folder / "samples").glob("*.png"))
        lines = [f"Done after {self.trainer.global_step} steps; everything is in {folder}"]
        metrics = {k: v.item() for k, v in self.trainer.callback_metrics.items() if k.startswith(("fid/", "val/"))}
        if metrics:
            lines.append("  result    " + ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items())))
        if pictures:
            lines.append(f"  pictures  {pictures[-1]}")
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger) and (way := logger.how_to_look()):
                lines.append(f"  W&B       {way}")
        if last.is_file():
            told = set(taken_by(self.model.network)) - {"labels"}
            rows = "--condition FILE" if told and not self.model.condition_dropout else "--num 64"
            lines.append(
                f"  sample    lightning sample --ckpt_path {shlex.quote(str(last))} {rows} --output samples.png"
            )
            lines.append(f"  resume    {resume_command(folder)}{longer(self.trainer)}")
        lines.append(f"  report    lightning report {shlex.quote(str(folder))}")
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunReport) and (summary := callback.summary()) is not None:
                summary.show()
        print("\n".join(lines))
