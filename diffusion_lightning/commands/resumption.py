"""What a run goes on from: the checkpoint that is meant, what of it is left to do, and the folder to go on in."""

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from diffusion_lightning.commands.run_folder import find_checkpoint, numbered, recorded_name, run_of
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.messages import inform, is_first_process
from diffusion_lightning.training.checkpoint_file import KEY, LOGGED, load_checkpoint, load_newest
from diffusion_lightning.training.position import Position

SLURM_JOB = "slurm_job"
"""File in a run's folder with the id of the SLURM job that started it."""


@dataclass
class Resumed:
    """What a subcommand goes on from.

    Attributes:
        checkpoint: what is needed of it: without its tensors, which Lightning reads again and would lie in memory until
            the end. Empty without one.
        folder: of the checkpoint's run, wherever it is now; None where a training is to be another run.
    """

    checkpoint: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def step(self) -> int:
        """The optimizer steps that have been done."""
        return self.checkpoint.get("global_step", 0)

    @property
    def logged(self) -> dict[str, float] | None:
        """What the last of them had logged when the checkpoint was saved, if more of it is to be logged, else None."""
        return self.checkpoint.get(LOGGED)

    @property
    def run_ids(self) -> dict[str, Any]:
        """The ids of the loggers' runs that are gone on with."""
        return self.checkpoint.get(KEY, {}).get("run_ids", {}) if self.folder else {}


def find_resumed(config: Any, files: list[Path], is_fit: bool, is_dry: bool) -> Resumed:
    """What is meant by a subcommand's ``ckpt_path``, which becomes a file's.

    A training that has had all its epochs or steps ends here, before anything is made.

    Args:
        config: the subcommand's options.
        files: the config files that they were read from.
        is_fit: whether a training goes on.
        is_dry: whether it is only tried.

    Raises:
        UsageError: if it has had more of them, or nothing can be written to its folder.
        ValueError, OSError: if there is no such checkpoint, or it cannot be used.
    """
    requeued = requeued_run(config, files) if is_fit else None
    if config.ckpt_path == "last" or requeued is not None:
        path, checkpoint = _last_checkpoint(config, [requeued] if requeued is not None else files)
        config.ckpt_path = str(path)
    elif config.ckpt_path is not None:
        config.ckpt_path = find_checkpoint(config.ckpt_path)
        checkpoint = load_checkpoint(config.ckpt_path)
    else:
        return Resumed()
    config.weights_only = True  # for Lightning's own reading of the same file
    resumed = Resumed(
        {name: checkpoint[name] for name in (KEY, LOGGED, "global_step", "hyper_parameters") if name in checkpoint}
        | {"callbacks": dict.fromkeys(checkpoint.get("callbacks") or {})}
    )
    if is_fit and not is_dry:
        _check_what_is_left(config, files, resumed.checkpoint)
    resumed.folder = _folder_to_go_on_in(config, files, resumed.step) if is_fit else run_of(config.ckpt_path)
    return resumed


def requeued_run(config: Any, files: list[Path]) -> Path | None:
    """The config of the run that this SLURM job has started or gone on with before SLURM restarted it."""
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    given = [file.parent for file in files]
    if config.ckpt_path not in (None, "last"):
        path = Path(config.ckpt_path)
        given.insert(0, path if path.is_dir() else run_of(path) or path)
    for folder in [*(g for g in given if _is_named(g, config.run_name)), *_run_folders(config)]:
        job = folder / SLURM_JOB
        if job.is_file() and job.read_text() == slurm_job() and any(folder.glob("checkpoints/*.ckpt")):
            return folder / "config.yaml"
    return None


def slurm_job() -> str | None:
    """What SLURM calls this job, the same after a requeue; None outside of SLURM."""
    if not SLURMEnvironment.detect():
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def resume_command(folder: Path) -> str:
    """What to type to go on with the run in a folder."""
    return f"lightning fit --config {shlex.quote(str(folder / 'config.yaml'))} --ckpt_path last"


def longer(trainer: Trainer) -> str:
    """What a resumed run needs beside its config to have something to do: more of what has run out."""
    options = ""
    epochs = Position.of(trainer).epoch  # without one that was cut short
    if trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs:
        options += f" --trainer.max_epochs {2 * epochs}"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        options += f" --trainer.max_steps {2 * trainer.global_step}"
    return options


def _last_checkpoint(config: Any, files: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The newest intact checkpoint of the run that a config file lies in, else of the newest run of this name."""
    for folder in [file.parent for file in files] + _run_folders(config):
        if found := load_newest(folder / "checkpoints"):
            return found
    raise UsageError(
        f"ckpt_path='last': no run in {Path(config.trainer.default_root_dir) / config.run_name} has a "
        "checkpoints/last.ckpt: start one without --ckpt_path"
    )


def _check_what_is_left(config: Any, files: list[Path], checkpoint: dict[str, Any]) -> None:
    """End here if the checkpoint has had all epochs or steps that are asked for.

    Raises:
        UsageError: if it has had more of them.
    """
    if config.trainer.fast_dev_run:
        return
    epochs = checkpoint[KEY].get("position", {}).get("epoch", 0)
    reached = {}
    for option, done in {"max_epochs": epochs, "max_steps": checkpoint["global_step"]}.items():
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
        again = ["lightning", "fit"]
        again += [part for file in ([own] if own.is_file() else files) for part in ("--config", str(file))]
        again += ["--ckpt_path", str(config.ckpt_path)]
        again += [part for option, done in reached.items() for part in (f"--trainer.{option}", str(2 * done))]
        which = " and ".join(f"trainer.{option}={done}" for option, done in reached.items())
        if is_first_process():
            print(f"Nothing is left to do: {config.ckpt_path} has reached {which}\n  resume    {shlex.join(again)}")
        sys.exit(0)


def _folder_to_go_on_in(config: Any, files: list[Path], step: int) -> Path | None:
    """The folder of the checkpoint's run, wherever it is now; None where the training is to be another run.

    Raises:
        UsageError: if nothing can be written there.
    """
    folder = run_of(config.ckpt_path)
    if folder is None:
        inform(
            f"starts a new run, {config.run_name}, from step {step} of {config.ckpt_path}, which lies in no run's "
            "folder (checkpoints/ beside a config.yaml)"
        )
        return None
    if not _is_named(folder, config.run_name):
        inform(f"starts a new run, {config.run_name}, from step {step} of another one's {config.ckpt_path}")
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
    inform(
        f"goes on in {folder} from step {step}, {Path(config.ckpt_path).name}"
        + (f"; not in {given[0]}, the config's folder, which that checkpoint is not of" if is_elsewhere else "")
    )
    return folder


def _run_folders(config: Any) -> list[Path]:
    """The folders of all runs of this name, the newest first."""
    return numbered(Path(config.trainer.default_root_dir) / config.run_name)


def _is_named(folder: Path, name: str) -> bool:
    """Whether a run of this name is in the folder: so its config says, or where it lies."""
    parts = Path(name).parts
    return recorded_name(folder) == name or folder.absolute().parent.parts[-len(parts) :] == parts
