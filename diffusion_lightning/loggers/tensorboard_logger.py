"""TensorBoard in the run's folder, without events twice after a resume."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import rank_zero_experiment

from diffusion_lightning.loggers.run_logger import RunLogger


class TensorBoardLogger(loggers.TensorBoardLogger):
    """TensorBoard, whose events are in ``tensorboard/`` of the run's folder unless told otherwise.

    Args:
        save_dir: folder of all runs' events, if they are not to be with the run.
        name: folder of this kind of run, in it.
        version: folder of this run, in that one.
        kwargs: as of Lightning's TensorBoardLogger.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(
        self, save_dir: str | None = None, name: str | None = None, version: int | str | None = None, **kwargs: Any
    ) -> None:
        if not any(map(_can_import, ("tensorboard", "tensorboardX"))):
            raise ImportError(
                "TensorBoardLogger needs the package tensorboard: pip install 'diffusion-lightning[tensorboard]'"
            )
        is_with_run = save_dir is None
        super().__init__(
            save_dir if save_dir is not None else ".",
            name=name if is_with_run or name is not None else "lightning_logs",
            version=version if not is_with_run or version is not None else "tensorboard",
            **kwargs,
        )
        self._is_with_run = is_with_run
        self._run: RunLogger | None = None
        self._former: tuple[Mapping[str, float], int] | None = None

    def belong_to(self, run: RunLogger) -> None:
        """Take the run's folder where the user gave none; it is asked for when the first thing is logged."""
        self._run = run

    def repeat(self, values: Mapping[str, float], step: int) -> None:
        """Void what a former part of the run has logged of ``step`` and later, and log these values of it again.

        It is done when the first thing is logged.
        """
        self._kwargs["purge_step"] = step
        self._former = values, step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and self._run is not None and self._is_with_run:
            self._root_dir = self._run.log_dir
        experiment = super().experiment
        if self._former is not None:
            (values, step), self._former = self._former, None
            for name, value in values.items():
                experiment.add_scalar(name, value, step)
            experiment.flush()
        return experiment


def _can_import(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def go_on(
    logger: loggers.TensorBoardLogger,
    version: int | str | None,
    step: int,
    logged: Mapping[str, float] | None = None,
) -> None:
    """Let a logger write to the folder of a former part of the run, whose events of ``step`` and later are void.

    TensorBoard can void steps, but no part of one. Where the run goes on before an epoch's pictures, and so logs more
    of the step before, that one is void too, and a :class:`TensorBoardLogger` repeats what had been logged of it by
    then; Lightning's own has that epoch's values and pictures twice.

    Args:
        logger: that has not logged yet.
        version: of the former part; what the user gave goes first.
        step: the optimizer step that the run is resumed from.
        logged: of the step before it when the checkpoint was saved, if more of it is to be logged.
    """
    if logger._version is None:
        logger._version = version
    if logger._kwargs.get("purge_step") is None:
        logger._kwargs["purge_step"] = step
        if logged is not None and isinstance(logger, TensorBoardLogger):
            logger.repeat(logged, step - 1)
    logger._default_hp_metric = False  # it is there already
