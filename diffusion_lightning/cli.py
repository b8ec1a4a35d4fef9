"""The `lightning` command: LightningCLI's fit, validate, test and predict, and sample and likelihood."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from diffusion_lightning import precision
from diffusion_lightning.callbacks import (
    BestCheckpoint,
    GracefulStop,
    LastCheckpoint,
    RunReport,
    SampleWriter,
    TrainingProgressBar,
)
from diffusion_lightning.callbacks.graceful_stop import Stopped
from diffusion_lightning.checkpoint import KEY, WholeCheckpointIO, load_checkpoint, load_newest
from diffusion_lightning.guest import as_guest
from diffusion_lightning.likelihood_command import likelihood_command
from diffusion_lightning.loggers import RunLogger, TensorBoardLogger, WandbLogger
from diffusion_lightning.loggers.tensorboard_logger import go_on
from diffusion_lightning.module import ScoreModule
from diffusion_lightning.sample_command import sample_command
from diffusion_lightning.usage import OneLineParser, UsageError, check_run, explain

USAGE = """\
usage: lightning {fit,validate,test,predict,sample,likelihood} [options]

  fit         train:    lightning fit --config configs/quickstart.yaml
              resume:   lightning fit --config runs/quickstart/version_0/config.yaml --ckpt_path last
  validate    the loss on held-out images and the FID of a checkpoint
  test        the same on the test set
  predict     samples as single pictures, split over processes
  sample      samples from a checkpoint alone:
                      lightning sample --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt --output s.png
  likelihood  bits/dim of held-out images:
                      lightning likelihood --ckpt_path runs/…/last.ckpt --data EmbeddedMNIST

lightning <command> --help lists a command's options; --debug shows the traceback of an error.
"""

SLURM_JOB = "slurm_job"
"""File in a run's folder with the id of the SLURM job that started it."""

# what a user's mistake raises; any other type is a mistake of ours, whose traceback must not be lost
EXPECTED = (ValueError, TypeError, OSError, MisconfigurationException, ImportError, FloatingPointError)

# how gloo and NCCL say that another process has gone, or has not answered within the strategy's timeout
LOST_CONTACT = ("gloo/transport/", "Application timeout caused pair closure", "Timed out waiting", "ncclRemoteError")


class RunConfig(SaveConfigCallback):
    """Writes the resolved ``config.yaml`` to the run's folder and to the loggers; keeps the one of before a resume."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, save_to_log_dir=False)  # type: ignore[misc]

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Lightning calls it on rank zero."""
        config = self.config.clone()
        config["ckpt_path"] = None  # a saved config describes the run, not how this part of it was started
        text = self.parser.dump(config, skip_none=False)
        run_logger, *others = trainer.loggers
        assert isinstance(run_logger, RunLogger)
        path = Path(run_logger.log_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_text() != text:
            earlier = len(list(path.parent.glob("config.before_resume_*.yaml")))
            shutil.copy(path, path.with_name(f"config.before_resume_{earlier}.yaml"))
        # whole at any moment: a killed run is resumed by it
        part = path.with_name("config.yaml.part")
        part.write_text(text)
        part.replace(path)
        for logger in others:
            logger.log_hyperparams({"config": config.as_dict()})


class DiffusionCLI(LightningCLI):
    """LightningCLI with a folder for every run.

    ``fit`` writes to ``<trainer.default_root_dir>/<run_name>/version_<n>``, by default below ``runs``. With
    ``--ckpt_path`` it continues in the folder of that checkpoint's run.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.resumed: dict[str, Any] = {}
        self.resumed_folder: Path | None = None
        super().__init__(
            model_class=ScoreModule,
            datamodule_class=LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            trainer_class=precision.Trainer,
            trainer_defaults={"default_root_dir": "runs", "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_name", type=str | None, default=None, help="Name of the run; by default the config file's."
        )
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI's; what is wrong is told before the seed is set or anything is made."""
        super().parse_arguments(parser, args)
        check_run(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would overwrite the config with the checkpoint's; ours checks that the two agree."""

    def before_instantiate_classes(self) -> None:
        """Settle the run's name, and what is resumed."""
        config = self.config[self.subcommand]
        files = [Path(str(path)) for path in config.get("config") or []]
        if config.run_name is None:
            config.run_name = files[0].stem if files else "run"
        requeued = self._requeued_run(config) if config.ckpt_path is None and self.subcommand == "fit" else None
        if config.ckpt_path == "last" or requeued is not None:
            path, checkpoint = self._last_checkpoint(config, [requeued] if requeued is not None else files)
            config.ckpt_path = str(path)
        elif config.ckpt_path is not None:
            checkpoint = load_checkpoint(config.ckpt_path)
        if config.ckpt_path is not None:
            # not its tensors, which Lightning reads again and would lie in memory until the end
            self.resumed = {name: checkpoint[name] for name in (KEY, "global_step", "hyper_parameters")}
            config.weights_only = True  # for Lightning's own reading of the same file
            folder = Path(config.ckpt_path).absolute().parent.parent
            name = Path(config.run_name).parts
            if (folder / "config.yaml").is_file() and folder.parent.parts[-len(name) :] == name:
                # as the user wrote it, so that what Lightning recorded of its folders stays true
                self.resumed_folder = Path(config.ckpt_path).parent.parent

    @staticmethod
    def _run_folders(config: Any) -> list[Path]:
        """The folders of all runs of this name, the newest first."""
        name = Path(config.trainer.default_root_dir) / config.run_name
        numbered = [folder for folder in name.glob("version_*") if folder.name[8:].isdigit()]
        return sorted(numbered, key=lambda folder: -int(folder.name[8:]))

    def _last_checkpoint(self, config: Any, files: list[Path]) -> tuple[Path, dict[str, Any]]:
        """The newest intact checkpoint of the run that a config file lies in, else of the newest run of this name."""
        for folder in [file.parent for file in files] + self._run_folders(config):
            if found := load_newest(folder / "checkpoints"):
                return found
        raise UsageError(
            f"ckpt_path='last': no run in {Path(config.trainer.default_root_dir) / config.run_name} has a "
            "checkpoints/last.ckpt: start one without --ckpt_path"
        )

    def _requeued_run(self, config: Any) -> Path | None:
        """The config of the run that this SLURM job has started before SLURM restarted it."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
            return None
        for folder in self._run_folders(config):
            job = folder / SLURM_JOB
            if job.is_file() and job.read_text() == _slurm_job() and any(folder.glob("checkpoints/*.ckpt")):
                return folder / "config.yaml"
        return None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, its checkpoints, the progress bar and the report, unless the config has its own."""
        if self.resumed:
            # now, before the run's folder gets the config of a network that its checkpoints are not of
            self.model.check_network(self.resumed)
        if self.subcommand == "fit":
            self._try_optimizer()
        config = self._get(self.config_init, "trainer")
        callbacks = config["callbacks"] = _as_list(config["callbacks"])
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TrainingProgressBar())
        if self.subcommand != "fit":
            kwargs.update(logger=False, enable_checkpointing=False)
            if self.resumed_folder is not None:
                kwargs["default_root_dir"] = str(self.resumed_folder)
            if self.subcommand == "predict" and not any(isinstance(c, SampleWriter) for c in callbacks):
                callbacks.append(SampleWriter())
            self.save_config_callback = None
            return super().instantiate_trainer(**kwargs)

        saving = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
        if config["enable_checkpointing"] is not False:
            if all(isinstance(c, LastCheckpoint) for c in saving):
                callbacks.append(BestCheckpoint())
            if not any(isinstance(c, LastCheckpoint) or c.save_last for c in saving):
                callbacks.append(LastCheckpoint())
        if not any(isinstance(c, GracefulStop) for c in callbacks):
            callbacks.insert(0, GracefulStop())  # before those that may take long at the start
        if not any(isinstance(c, RunReport) for c in callbacks):
            callbacks.append(RunReport())
        plugins = _as_list(config["plugins"])
        if not any(isinstance(p, CheckpointIO) for p in plugins):
            plugins.append(WholeCheckpointIO())
        name = self.config[self.subcommand].run_name
        given = config["logger"]
        others = [] if given in (None, True, False) else _as_list(given)
        self.run_logger = RunLogger(
            config["default_root_dir"], name, self.resumed_folder, self.resumed.get("global_step", 0)
        )
        job = _slurm_job()
        if job is not None and not config["fast_dev_run"]:
            folder = Path(self.run_logger.log_dir)
            # where Lightning saves when SLURM announces the end of the job's time; another job must not find it
            kwargs["default_root_dir"] = str(folder)
            rank_zero_only((folder / SLURM_JOB).write_text)(job)
        trainer = super().instantiate_trainer(
            logger=[self.run_logger, *map(as_guest, others)], plugins=plugins, **kwargs
        )
        if trainer.is_global_zero and not config["fast_dev_run"]:
            continued = self.resumed.get(KEY, {}).get("run_ids", {}) if self.resumed_folder else {}
            for logger in others:
                run_id = continued.get(type(logger).__name__)
                if isinstance(logger, WandbLogger):
                    logger.belong_to(self.run_logger, run_id)
                if isinstance(logger, TensorBoardLogger):
                    logger.belong_to(self.run_logger)
                if isinstance(logger, LightningTensorBoardLogger) and run_id is not None:
                    go_on(logger, run_id, self.resumed["global_step"])
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Stopped as stopped:
            if stopped.is_launched:
                sys.exit(0)  # with another code the process that started this one would be killed while it tidies up
            if self.trainer.is_global_zero:
                done = "saved" if stopped.saved else "which is not saved"
                print(f"lightning: {stopped} ({done}); resume: {self._resume_command()}", file=sys.stderr)
            sys.exit(128 + stopped.signum)
        # before training has begun only Lightning looks for signals
        except SIGTERMException:
            sys.exit(128 + signal.SIGTERM)
        except SystemExit:
            if self.trainer.interrupted:
                sys.exit(128 + signal.SIGINT)
            raise

    def _resume_command(self) -> str:
        return f"lightning fit --config {Path(self.run_logger.log_dir) / 'config.yaml'} --ckpt_path last"

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
            lines.append(f"  sample    lightning sample --ckpt_path {last} --num 64 --output samples.png")
            longer = f"--trainer.max_epochs {2 * (self.trainer.current_epoch or 1)}"
            lines.append(f"  resume    {self._resume_command()} {longer}")
        reports = [c.summary() for c in self.trainer.callbacks if isinstance(c, RunReport)]  # type: ignore[attr-defined]
        print("\n".join([*filter(None, reports), *lines]))


def main(args: list[str] | None = None) -> None:
    """Run the `lightning` command.

    Args:
        args: the command line without the program's name; the process's own if left out.
    """
    given = sys.argv[1:] if args is None else args
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if given else 2)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    try:
        match given[0]:
            case "sample":
                sample_command(given[1:])
            case "likelihood":
                likelihood_command(given[1:])
            case _:
                DiffusionCLI(args)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if "--debug" in given:
            raise
        line = str(error) if isinstance(error, UsageError) else explain(str(error)) or type(error).__name__
        if _is_lost_contact(error):
            line = (
                "lost contact with another process of this run: it died, and its message is above or on its machine, "
                "or stood still for longer than the strategy's timeout; resume with --ckpt_path last"
            )
        elif not isinstance(error, EXPECTED):
            with tempfile.NamedTemporaryFile("w", prefix="lightning-", suffix=".log", delete=False) as log:
                traceback.print_exc(file=log)
            line = f"{type(error).__name__}: {line} (traceback: {log.name})"
        print(f"lightning: error: {line}", file=sys.stderr)
        sys.exit(1)


def _as_list(given: Any) -> list[Any]:
    """What may be given as a list, as one alone, or not at all."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def _slurm_job() -> str | None:
    """What SLURM calls this job, the same after a requeue; None outside of SLURM."""
    if not SLURMEnvironment.detect():
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def _is_lost_contact(error: Exception) -> bool:
    # neither library has a type of its own for it
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_CONTACT)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
