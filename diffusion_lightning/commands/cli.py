"""The `lightning` command: LightningCLI's fit, validate, test and predict, and the commands of a finished run."""

import argparse
import difflib
import logging
import os
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import shtab
import yaml
from jsonargparse import capture_parser
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

import diffusion_lightning.networks  # noqa: F401 — so that its classes are known by their short names
from diffusion_lightning.callbacks import (
    BestCheckpoint,
    GracefulStop,
    LastCheckpoint,
    RunReport,
    SampleWriter,
    TerminalProgressBar,
    TrainingProgressBar,
)
from diffusion_lightning.callbacks.graceful_stop import Stopped
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.commands.configs import configs_command, configs_parser
from diffusion_lightning.commands.dry_run import TRIAL_STEPS, Length, dry_run
from diffusion_lightning.commands.evaluate import evaluate_command, evaluate_parser
from diffusion_lightning.commands.export import export_command, export_parser
from diffusion_lightning.commands.likelihood import likelihood_command, likelihood_parser
from diffusion_lightning.commands.manual import USAGE, version_line
from diffusion_lightning.commands.report import report_command, report_parser
from diffusion_lightning.commands.run_folder import find_checkpoint, numbered, recorded_name, run_of
from diffusion_lightning.commands.sample import sample_command, sample_parser
from diffusion_lightning.commands.usage import OneLineParser, UsageError, check_run, explain
from diffusion_lightning.disk import replace_keeping
from diffusion_lightning.home import give_home
from diffusion_lightning.loggers import RunLogger, TensorBoardLogger, WandbLogger
from diffusion_lightning.loggers.environment import describe_environment
from diffusion_lightning.loggers.guest import as_guest
from diffusion_lightning.loggers.tensorboard_logger import go_on
from diffusion_lightning.tables import print_table
from diffusion_lightning.training import precision
from diffusion_lightning.training.checkpoint import WholeCheckpointIO
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint, load_newest
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.position import Position

SCREENS = {
    "fit": """\
lightning fit --config FILE [--config FILE …] [--option value …]

Train a model. Later files and options are laid over earlier ones; every setting of the config is an option.

  lightning fit --config configs/quickstart.yaml                        train; everything goes to runs/quickstart/
  lightning fit --config runs/quickstart/version_0/config.yaml --ckpt_path last                          resume
  lightning fit --config configs/mnist.yaml --print_config      what it means, with every default; and stop
  lightning fit --config configs/mnist.yaml --dry_run           size, arithmetic and time; and stop

  --run_name NAME             of the run's folder; the config file's name by default
  --seed_everything N         decides all that is random
  --data CLASS                EmbeddedMNIST, MNIST, CIFAR10, ImageFolder, Points; --data.root, --data.batch_size
  --model.network CLASS       UNet, ScoreNet, …, or your own by its import path; --model.network.channels, …
  --model.sampler CLASS       Heun, DPMSolverPlusPlus, …; --model.sampler.steps
  --model.optimizer CLASS     AdamW, …; --model.optimizer.lr; likewise --model.lr_scheduler
  --trainer.max_epochs N      or --trainer.max_steps N
  --trainer.devices N         GPUs or processes; --trainer.accelerator, --trainer.strategy ddp
  --trainer.precision auto    bf16 where the device has units for it
  --trainer.logger CLASS      WandbLogger, TensorBoardLogger, or false
  --CLASS.help                the options of a class: --model.network.help UNet, --data.help MNIST""",
    "validate": """\
lightning validate --config runs/NAME/version_0/config.yaml --ckpt_path last [--option value …]

The loss on held-out images, and what the config's measurements (FID) say of the checkpoint, by its EMA weights.""",
    "test": """\
lightning test --config runs/NAME/version_0/config.yaml --ckpt_path last [--option value …]

As validate, on the same images, logged as test/loss.""",
    "predict": """\
lightning predict --config runs/NAME/version_0/config.yaml --ckpt_path last [--data.num_predictions N]

Samples as single pictures, drawn by the EMA weights and split over the processes.""",
}
"""What `lightning <command> --help` begins with, no more than a screen; all options follow."""

SLURM_JOB = "slurm_job"
"""File in a run's folder with the id of the SLURM job that started it."""

# what a user's mistake raises; any other type is a mistake of ours, whose traceback must not be lost
EXPECTED = (ValueError, TypeError, OSError, MisconfigurationException, ImportError, FloatingPointError)

# how gloo and NCCL say that another process has gone, or has not answered within the strategy's timeout
LOST_CONTACT = ("gloo/transport/", "Application timeout caused pair closure", "Timed out waiting", "ncclRemoteError")


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
            save_config_kwargs={"command": ["lightning", *(sys.argv[1:] if args is None else args)]},
            trainer_class=precision.Trainer,
            trainer_defaults={"default_root_dir": "runs", "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={command: {"usage": screen} for command, screen in SCREENS.items()},
            args=args,
        )

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
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI's; what is wrong is told before the seed is set or anything is made."""
        super().parse_arguments(parser, args)
        unread = sorted(name for name in os.environ if name.startswith(f"PL_{self.config.subcommand.upper()}__"))
        if unread:
            rank_zero_warn(
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
            trainer = config.trainer
            self.length = Length(
                trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches, trainer.accumulate_grad_batches
            )
            meant = config.clone()
            del meant["dry_run"]
            print(self._parser(self.subcommand).dump(meant))
            trainer.fast_dev_run, trainer.limit_val_batches = TRIAL_STEPS, 1
            trainer.enable_progress_bar = trainer.enable_model_summary = False
        files = [Path(str(path)) for path in config.get("config") or []]
        if config.run_name is None:
            config.run_name = files[0].stem if files else "run"
        requeued = self._requeued_run(config) if self.subcommand == "fit" else None
        if config.ckpt_path == "last" or requeued is not None:
            path, checkpoint = self._last_checkpoint(config, [requeued] if requeued is not None else files)
            config.ckpt_path = str(path)
        elif config.ckpt_path is not None:
            config.ckpt_path = find_checkpoint(config.ckpt_path)
            checkpoint = load_checkpoint(config.ckpt_path)
        if config.ckpt_path is not None:
            # not its tensors, which Lightning reads again and would lie in memory until the end
            self.resumed = {name: checkpoint[name] for name in (KEY, "global_step", "hyper_parameters")}
            if self.subcommand == "fit" and not self._is_dry():
                self._check_what_is_left(config)
            config.weights_only = True  # for Lightning's own reading of the same file
            self.resumed_folder = self._folder_to_go_on_in(config, files)
        elif self.subcommand != "fit":
            rank_zero_warn("no --ckpt_path: this is of the network as the config makes it, without any training")

    def _folder_to_go_on_in(self, config: Any, files: list[Path]) -> Path | None:
        """The folder of the checkpoint's run, wherever it is now; None where a training is to be another run.

        Raises:
            UsageError: if nothing can be written there.
        """
        folder = run_of(config.ckpt_path)
        if self.subcommand != "fit":
            return folder
        step = self.resumed["global_step"]
        if folder is None:
            rank_zero_info(
                f"starts a new run, {config.run_name}, from step {step} of {config.ckpt_path}, which lies in no run's "
                "folder (checkpoints/ beside a config.yaml)"
            )
            return None
        if not _is_named(folder, config.run_name):
            rank_zero_info(f"starts a new run, {config.run_name}, from step {step} of another one's {config.ckpt_path}")
            return None
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UsageError(
                f"ckpt_path={config.ckpt_path!r}: its run's folder cannot be written ({error.strerror}): give "
                "--run_name, another name, to go on from it in a new run"
            ) from error
        given = [file.parent for file in files if file.name == "config.yaml" and recorded_name(file.parent) is not None]
        is_elsewhere = bool(given) and all(place.resolve() != folder.resolve() for place in given)
        rank_zero_info(
            f"goes on in {folder} from step {step}, {Path(config.ckpt_path).name}"
            + (f"; not in {given[0]}, the config's folder, which that checkpoint is not of" if is_elsewhere else "")
        )
        return folder

    def _check_what_is_left(self, config: Any) -> None:
        """End here, before anything is made, if the checkpoint has had all epochs or steps that are asked for.

        Raises:
            UsageError: if it has had more of them.
        """
        if config.trainer.fast_dev_run:
            return
        epochs = self.resumed[KEY].get("position", {}).get("epoch", 0)
        reached = {}
        for option, done in {"max_epochs": epochs, "max_steps": self.resumed["global_step"]}.items():
            limit = config.trainer[option]
            if limit is None or limit < 0 or done < limit:
                continue
            if done > limit:
                raise UsageError(
                    f"trainer.{option}={limit}: the checkpoint has had {done} {option[4:]} already: give more of them"
                )
            reached[option] = done
        if reached:
            own = Path(config.ckpt_path).parent.parent / "config.yaml"
            files = [str(own)] if own.is_file() else [str(path) for path in config.get("config") or []]
            again = ["lightning", "fit", *(part for file in files for part in ("--config", file))]
            again += ["--ckpt_path", str(config.ckpt_path)]
            again += [part for option, done in reached.items() for part in (f"--trainer.{option}", str(2 * done))]
            which = " and ".join(f"trainer.{option}={done}" for option, done in reached.items())
            rank_zero_only(print)(  # type: ignore[operator]
                f"Nothing is left to do: {config.ckpt_path} has reached {which}\n  resume    {shlex.join(again)}"
            )
            sys.exit(0)

    @staticmethod
    def _run_folders(config: Any) -> list[Path]:
        """The folders of all runs of this name, the newest first."""
        return numbered(Path(config.trainer.default_root_dir) / config.run_name)

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
        """The config of the run that this SLURM job has started or gone on with before SLURM restarted it."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
            return None
        given = [Path(str(path)).parent for path in config.get("config") or []]
        if config.ckpt_path not in (None, "last"):
            path = Path(config.ckpt_path)
            given.insert(0, path if path.is_dir() else run_of(path) or path)
        for folder in [*(g for g in given if _is_named(g, config.run_name)), *self._run_folders(config)]:
            job = folder / SLURM_JOB
            if job.is_file() and job.read_text() == _slurm_job() and any(folder.glob("checkpoints/*.ckpt")):
                return folder / "config.yaml"
        return None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run's folder, its checkpoints, the progress bar and the report, unless the config has its own."""
        if self.resumed:
            # now, before the run's folder gets the config of a network that its checkpoints are not of
            (self.model.check_resume if self.subcommand == "fit" else self.model.check_network)(self.resumed)
        if self.subcommand == "fit":
            self._try_optimizer()
        config = self._get(self.config_init, "trainer")
        callbacks = config["callbacks"] = _as_list(config["callbacks"])
        if self.subcommand != "predict":
            self._check_parts(callbacks)
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TerminalProgressBar() if sys.stderr.isatty() else TrainingProgressBar())
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
        try:
            trainer = super().instantiate_trainer(
                logger=[self.run_logger, *map(as_guest, others)], plugins=plugins, **kwargs
            )
        except Exception:
            self.run_logger.withdraw()
            raise
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

    def _is_dry(self) -> bool:
        return "dry_run" in self.config[self.subcommand]

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            if self._is_dry():
                rows = dry_run(self.trainer, self.model, self.datamodule, self.length)
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
                print(f"lightning: {stopped} ({done}); resume: {self._resume_command()}", file=sys.stderr)
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

    def _resume_command(self) -> str:
        config = shlex.quote(str(Path(self.run_logger.log_dir) / "config.yaml"))
        return f"lightning fit --config {config} --ckpt_path last"

    def _check_parts(self, callbacks: Sequence[Any]) -> None:
        """See that data, network and what draws samples fit each other, as the trainer will once a run has begun."""
        self.model.check_data(self.datamodule, is_new=self.subcommand == "fit" and not self.resumed)
        for callback in callbacks:
            if isinstance(callback, SamplingCallback) and not self._is_dry():  # a dry run draws nothing
                callback.check(self.model, self.datamodule)

    def _longer(self) -> str:
        """What a resumed run needs beside its config to have something to do: more of what has run out."""
        trainer, longer = self.trainer, ""
        epochs = Position.of(trainer).epoch  # without one that was cut short
        if trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs:
            longer += f" --trainer.max_epochs {2 * epochs}"
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            longer += f" --trainer.max_steps {2 * trainer.global_step}"
        return longer

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
            lines.append(
                f"  sample    lightning sample --ckpt_path {shlex.quote(str(last))} --num 64 --output samples.png"
            )
            lines.append(f"  resume    {self._resume_command()}{self._longer()}")
        lines.append(f"  report    lightning report {shlex.quote(str(folder))}")
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunReport) and (summary := callback.summary()) is not None:
                summary.show()
        print("\n".join(lines))


def main(args: list[str] | None = None) -> None:
    """Run the `lightning` command.

    Args:
        args: the command line without the program's name; the process's own if left out.
    """
    given = sys.argv[1:] if args is None else args
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        print(version_line())
        return
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
    try:
        give_home()
        _check_command(given[0])
        if given[0] in COMMANDS:
            command, _ = COMMANDS[given[0]]
            command(given[1:])
        else:
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


def completion_tree() -> argparse.ArgumentParser:
    """Every command with the names of its options and what they say of themselves.

    A plain parser: of jsonargparse's own, with all that their types could be, a script would take minutes to make.
    """
    tree = argparse.ArgumentParser(prog="lightning", add_help=False)
    commands = tree.add_subparsers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, that it is given arguments beside those of the process
        whole = capture_parser(DiffusionCLI, [])
    of_lightning = whole._subcommands_action
    assert of_lightning is not None
    parsers = {**of_lightning.choices, **{name: make_parser() for name, (_, make_parser) in COMMANDS.items()}}
    for name, parser in parsers.items():
        command = commands.add_parser(name, add_help=False, help=parser.description or name)
        for action in parser._actions:
            if action.option_strings and action.help != argparse.SUPPRESS:
                known = command.add_argument(*action.option_strings, help=str(action.help).partition("\n")[0])
                if action.dest in FILES:
                    known.complete = shtab.FILE  # type: ignore[attr-defined]
    return tree


def completion_command(args: list[str]) -> None:
    """Print a script by which a shell completes the commands and options.

    Args:
        args: the command line after ``lightning completion``.

    Raises:
        ValueError: for another shell.
    """
    shell = completion_parser().parse_args(args).shell
    print(shtab.complete(completion_tree(), shell))


def completion_parser() -> OneLineParser:
    """The options of ``lightning completion``."""
    parser = OneLineParser(
        prog="lightning completion",
        description="Print what a shell needs to complete the commands and options.",
    )
    parser.add_argument("shell", type=Literal["bash", "zsh", "tcsh"], help="For which shell.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


COMMANDS: dict[str, tuple[Callable[[list[str]], None], Callable[[], argparse.ArgumentParser]]] = {
    "sample": (sample_command, sample_parser),
    "evaluate": (evaluate_command, evaluate_parser),
    "likelihood": (likelihood_command, likelihood_parser),
    "report": (report_command, report_parser),
    "export": (export_command, export_parser),
    "configs": (configs_command, configs_parser),
    "completion": (completion_command, completion_parser),
}
"""Those that are not Lightning's: what runs each, and its options."""


LIGHTNINGS = ("fit", "validate", "test", "predict")
"""The commands that are Lightning's."""

FILES = ("config", "ckpt_path", "output", "reference")
"""Options whose values a shell completes as files."""


def _check_command(word: str) -> None:
    """Raise a UsageError if the first word of a command line is neither a command nor an option."""
    known = (*LIGHTNINGS, *COMMANDS)
    if word not in known and not word.startswith("-"):
        nearest = difflib.get_close_matches(word, known, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise UsageError(f"{word!r} is no command{hint}: must be one of {', '.join(known)}")


def _as_list(given: Any) -> list[Any]:
    """What may be given as a list, as one alone, or not at all."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def _is_named(folder: Path, name: str) -> bool:
    """Whether a run of this name is in the folder: so its config says, or where it lies."""
    parts = Path(name).parts
    return recorded_name(folder) == name or folder.absolute().parent.parts[-len(parts) :] == parts


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
