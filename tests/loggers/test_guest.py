"""A logger as a guest: the same logger while it works, and nobody's trouble when it does not."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from diffusion_lightning import RunLogger, WandbLogger
from diffusion_lightning.loggers.guest import as_guest, excused


class Fragile(Logger):
    """A tracker of which one part fails."""

    def __init__(self, fails: str | None = None, error: Exception | None = None) -> None:
        super().__init__()
        self.fails, self.error, self.seen = fails, error or RuntimeError("it is\ndown"), []  # type: ignore[var-annotated]

    def _do(self, name: str) -> str:
        self.seen.append(name)
        if name == self.fails:
            raise self.error
        return name

    name = property(lambda self: self._do("name"))
    version = property(lambda self: self._do("version"))
    save_dir = property(lambda self: self._do("save_dir"))
    experiment = property(lambda self: self._do("experiment"))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._do("log_metrics")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._do("log_hyperparams")

    def log_image(self, key: str, images: list[Any]) -> str:
        return self._do("log_image")

    def save(self) -> None:
        self._do("save")

    def finalize(self, status: str) -> None:
        self._do("finalize")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self._do("after_save_checkpoint")


PROPERTIES = ("name", "version", "save_dir")
METHODS = ("log_metrics", "log_hyperparams", "log_image", "save", "finalize", "after_save_checkpoint")


def use(logger: Any) -> None:
    """As the trainer and the callbacks do."""
    _ = logger.experiment, logger.name, logger.version, logger.save_dir
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_image("samples", [])
    logger.save()
    logger.after_save_checkpoint(None)
    logger.finalize("success")


def test_a_guest_that_works_is_the_logger_itself():
    logger = Fragile()
    guest = as_guest(logger)
    assert guest is logger
    assert isinstance(guest, Fragile)
    assert type(guest).__name__ == "Fragile"  # the key of its id in a checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(guest)
    assert set(guest.seen) == {"experiment", *PROPERTIES, *METHODS}
    assert (guest.experiment, guest.version, guest.log_image("samples", [])) == ("experiment", "version", "log_image")


@pytest.mark.parametrize("part", ["experiment", *PROPERTIES, *METHODS])
def test_what_fails_is_told_once_and_not_asked_again(part):
    guest = as_guest(Fragile(part))
    with pytest.warns(
        UserWarning, match="^Fragile failed and is left out from now on; training goes on: it is$"
    ) as told:
        use(guest)
    assert len(told) == 1
    before = list(guest.seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(guest)
    assert before.count(part) == 1 or part in PROPERTIES
    assert not set(guest.seen[len(before) :]) & {"experiment", *METHODS}


@pytest.mark.parametrize("error", [TypeError("no such argument"), ValueError("no such project")])
def test_wrong_arguments_are_an_error_before_training(error):
    guest = as_guest(Fragile("experiment", error))
    with pytest.raises(ValueError, match=f"^Fragile: {error}$"):
        _ = guest.experiment


def test_later_the_same_error_is_not(recwarn):
    logger = Fragile()
    guest = as_guest(logger)
    _ = guest.experiment
    logger.fails, logger.error = "experiment", ValueError("it lost its mind")
    guest.experiment.add_image("a", 1)
    assert [str(warning.message) for warning in recwarn] == [
        "Fragile failed and is left out from now on; training goes on: it lost its mind"
    ]


def test_an_experiment_that_fails_is_excused_if_it_is_a_guests():
    with pytest.warns(UserWarning, match="training goes on: no space"), excused(as_guest(Fragile())):
        raise OSError("no space")
    with pytest.raises(OSError, match="no space"), excused(Fragile()):
        raise OSError("no space")


def test_lightnings_loggers_stay_what_they_are(tmp_path):
    wandb_logger = as_guest(WandbLogger(id="abcd"))
    assert isinstance(wandb_logger, WandbLogger)
    assert wandb_logger.version == "abcd"
    csv = as_guest(CSVLogger(tmp_path))
    csv.log_metrics({"loss": 1.0}, 0)
    csv.save()
    assert (Path(csv.log_dir) / "metrics.csv").is_file()
    assert isinstance(as_guest(TensorBoardLogger(tmp_path)), TensorBoardLogger)
    assert not hasattr(RunLogger(tmp_path, "run"), "_is_guest")


def test_a_guest_can_be_sent_to_another_process(tmp_path):
    guest = pickle.loads(pickle.dumps(as_guest(CSVLogger(tmp_path, version="v"))))
    assert isinstance(guest, CSVLogger)
    assert guest.log_dir.endswith("v")
    (tmp_path / "lightning_logs").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="CSVLogger failed"):
        guest.log_metrics({"loss": 1.0}, 99)
