import csv
import errno
import io
import itertools
import math
import os
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lightning import RunLogger, TensorBoardLogger, WandbLogger
from diffusion_lightning.loggers import metrics_table
from diffusion_lightning.loggers.tensorboard_logger import go_on
from diffusion_lightning.loggers.wandb_file import next_step


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def log(logger: RunLogger, *steps: int, **metrics: float) -> None:
    for step in steps:
        logger.log_metrics(metrics or {"loss": step / 2}, step)


# ---- the run's folder


def test_each_run_takes_the_next_version(tmp_path):
    for number in range(3):
        logger = RunLogger(tmp_path, "run")
        assert not (tmp_path / "run" / f"version_{number}").exists()  # not before it is needed
        assert logger.version == number
        assert Path(logger.log_dir) == tmp_path / "run" / f"version_{number}"
        assert Path(logger.log_dir).is_dir()
        assert logger.version == number
    assert RunLogger(tmp_path, "other").version == 0


def test_the_next_version_is_above_all_that_are_there(tmp_path):
    for name in ("version_2", "version_x", "7"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert RunLogger(tmp_path, "run").version == 3


def test_runs_that_start_together_never_share_a_folder(tmp_path):
    number = 8
    barrier, versions = threading.Barrier(number), []

    def start() -> None:
        logger = RunLogger(tmp_path, "run")
        barrier.wait()
        versions.append(logger.version)

    threads = [threading.Thread(target=start) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(number))


def test_a_run_that_looked_before_the_other_made_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(RunLogger, "_get_next_version", lambda self: 0)
    assert [RunLogger(tmp_path, "run").version for _ in range(3)] == [0, 1, 2]


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "version_0").write_text("mine")
    assert RunLogger(tmp_path, "run").version == 1
    assert (tmp_path / "run" / "version_0").read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"trainer\.default_root_dir='.*/file': no folder can be made there"):
        _ = RunLogger(tmp_path / "file", "run").version


def test_other_processes_make_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunLogger(tmp_path, "run")
    assert logger.version == 0
    log(logger, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_not_begun_is_withdrawn_and_no_other(tmp_path):
    root = tmp_path / "runs"
    logger = RunLogger(root, "a/run")
    logger.withdraw()  # nothing has been made yet
    Path(logger.log_dir, "wandb").mkdir()
    Path(logger.log_dir, "wandb", "debug.log").touch()
    logger.withdraw()
    assert not root.exists()  # it had not been there

    first = RunLogger(root, "run")
    Path(first.log_dir, "mine.txt").touch()
    second = RunLogger(root, "run")
    assert second.version == 1
    second.withdraw()
    second.withdraw()
    resumed = RunLogger(root, "run", resume=Path(first.log_dir))
    _ = resumed.log_dir
    resumed.withdraw()
    left = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*"))]
    assert left == ["run", "run/version_0", "run/version_0/mine.txt"]


def test_a_failed_run_leaves_no_empty_folder(tmp_path):
    logger = RunLogger(tmp_path, "run")
    folder = Path(logger.log_dir)
    logger.finalize("failed")
    assert not folder.exists()

    logger = RunLogger(tmp_path, "run")
    log(logger, 1)
    logger.finalize("failed")
    assert rows(folder) == [{"step": "1", "loss": "0.5"}]

    empty = RunLogger(tmp_path, "run")
    folder = Path(empty.log_dir)
    empty.finalize("success")
    assert folder.is_dir()


# ---- metrics.csv


def test_every_row_is_on_disk_at_once(tmp_path):
    logger = RunLogger(tmp_path, "run")
    log(logger, 9)
    assert rows(tmp_path / "run" / "version_0") == [{"step": "9", "loss": "4.5"}]
    log(logger, 19, fid=2.0)
    assert rows(tmp_path / "run" / "version_0") == [{"step": "9", "loss": "4.5"}, {"step": "19", "fid": "2.0"}]


def test_a_resumed_run_goes_on_from_its_step(tmp_path):
    first = RunLogger(tmp_path, "run")
    log(first, 0, 1)
    log(first, 1, fid=3.0)
    log(first, 2, 3)
    folder = Path(first.log_dir)
    (folder / "config.yaml").write_text("kept")

    resumed = RunLogger(tmp_path / "elsewhere", "other", resume=folder, resume_step=2)
    assert Path(resumed.log_dir) == folder
    assert resumed.name == "run"
    assert len(rows(folder)) == 4  # nothing is lost by merely looking
    log(resumed, 2, val=7.0)
    log(resumed, 4)
    assert rows(folder) == [
        {"step": "0", "loss": "0.0"},
        {"step": "1", "loss": "0.5", "fid": "3.0"},
        {"step": "2", "val": "7.0"},
        {"step": "4", "loss": "2.0"},
    ]
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "metrics.csv"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_resumed_run_that_wrote_half_a_row(tmp_path):
    first = RunLogger(tmp_path, "run")
    log(first, 0, 1)
    folder = Path(first.log_dir)
    with open(folder / "metrics.csv", "a") as file:
        file.write("0.7")  # the power went off: a loss without its step
    log(RunLogger(tmp_path, "run", folder, 5), 5)
    assert rows(folder) == [{"step": str(n), "loss": str(n / 2)} for n in (0, 1, 5)]


def test_the_values_of_a_step_are_one_row(tmp_path):
    logger = RunLogger(tmp_path, "run")
    file = tmp_path / "run" / "version_0" / "metrics.csv"
    log(logger, 1, a=1.0, b=0.123456789)
    log(logger, 2, b=2.0)
    log(logger, 2, a=3.0)  # a cell is filled
    assert file.read_text() == "a,b,step\n1.0,0.123456789,1\n3.0,2.0,2\n"
    log(logger, 2, a=0.123456789)  # a longer value
    log(logger, 2, b=4)  # a shorter one
    log(logger, 3, a=1.0)
    log(logger, 3, c=5.0)  # a new column
    assert file.read_text() == "a,b,c,step\n1.0,0.123456789,,1\n0.123456789,4,,2\n1.0,,5.0,3\n"
    assert [path.name for path in file.parent.iterdir()] == ["metrics.csv"]


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture
def accident(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the n-th change of a file raise, and those after it."""

    def arm(number: int, error: BaseException) -> None:
        done = []

        def fail() -> None:
            done.append(None)
            if len(done) > number:
                raise error

        class Mortal(io.FileIO):
            def write(self, data: Any) -> int:
                fail()
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                fail()
                return super().truncate(size)

        def write_bytes(path: Path, data: bytes) -> int:
            with Mortal(path, "w") as file:
                file.write(data[: len(data) // 2])  # in two parts, for the accident between them
                return file.write(data[len(data) // 2 :])

        def replace(path: Path, target: Any) -> None:
            fail()
            os.replace(path, target)

        monkeypatch.setattr(metrics_table, "open", lambda path, mode, buffering: Mortal(path, "r+"), raising=False)
        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        monkeypatch.setattr(Path, "replace", replace)

    return arm


LOGGED = [(1, "a", 1.0), (1, "b", 2.0), (2, "a", 3.5), (2, "b", 4.0), (3, "b", 5.0), (3, "c", 6.0)]
CHANGES = 18  # of files, while these are logged


def after(number: int) -> list[dict[str, str]]:
    """The rows that the first so many logged values make."""
    table: dict[int, dict[str, str]] = {}
    for step, name, value in LOGGED[:number]:
        table.setdefault(step, {"step": str(step)})[name] = str(value)
    return list(table.values())


@pytest.mark.parametrize("number", range(CHANGES + 1))
def test_killed_at_any_moment_nothing_is_lost(tmp_path, monkeypatch, accident, number):
    logger = RunLogger(tmp_path, "run")
    folder, logged = Path(logger.log_dir), 0
    accident(number, Killed())
    with suppress(Killed):
        for step, name, value in LOGGED:
            log(logger, step, **{name: value})
            logged += 1
    assert (logged == len(LOGGED)) == (number == CHANGES)
    monkeypatch.undo()
    RunLogger(tmp_path, "run", folder, 9).save()
    found = rows(folder) if logged or (folder / "metrics.csv").is_file() else []
    assert found in (after(logged), after(logged + 1))


@pytest.mark.parametrize("number", range(CHANGES + 1))
def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path, monkeypatch, accident, number):
    logger = RunLogger(tmp_path, "run")
    folder = Path(logger.log_dir)
    accident(number, OSError(errno.ENOSPC, "No space left on device"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step, name, value in LOGGED:
            log(logger, step, **{name: value})
    assert len(told) == (number < CHANGES)
    for warning in told:
        assert str(warning.message).startswith(f"{folder / 'metrics.csv'} cannot be written (No space left on device; ")
    monkeypatch.undo()  # there is space again
    logger.finalize("success")
    assert rows(folder) == after(len(LOGGED))
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


def test_a_folder_that_was_away(tmp_path):
    logger = RunLogger(tmp_path, "run")
    folder = Path(logger.log_dir)
    log(logger, 1)
    folder.rename(tmp_path / "away")
    with pytest.warns(
        UserWarning, match=r"metrics\.csv cannot be written \(No such file or directory; free space unknown\)"
    ):
        log(logger, 2, 3)
    (tmp_path / "away").rename(folder)
    log(logger, 4)
    assert [row["step"] for row in rows(folder)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "tail",
    [b"0.7", b"0.7,2\n", b"\0\0\0\0\n", b"\xff\xfe,\x80\n", b"0.7,two\n", b"much,2\n", b"\n\n", b'"0.7,2\n3.0,3\n'],
)
def test_what_is_no_whole_row_is_dropped_on_resume(tmp_path, tail):
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_bytes(b"fid,loss,step\r\n,0.5,1\r\n7.0,,1\r\n" + tail)
    logger = RunLogger(tmp_path, "run", folder, 5)
    log(logger, 1, loss=0.5)  # again, as a resumed run may
    log(logger, 5)
    assert rows(folder) == [{"step": "1", "loss": "0.5", "fid": "7.0"}, {"step": "5", "loss": "2.5"}]


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"no header\n1,2\n"])
def test_a_file_of_something_else_is_begun_anew(tmp_path, content):
    folder = tmp_path / "run" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_bytes(content)
    log(RunLogger(tmp_path, "run", folder, 5), 5)
    assert rows(folder) == [{"step": "5", "loss": "2.5"}]


def test_hyperparameters_are_left_to_the_config(tmp_path):
    logger = RunLogger(tmp_path, "run")
    logger.log_hyperparams({"a": 1})
    logger.save()
    assert not list(tmp_path.rglob("hparams.yaml"))


# ---- W&B


@pytest.fixture
def inits(monkeypatch) -> list[dict[str, Any]]:
    """The arguments that wandb.init was called with; no run is made. Nobody can be asked for a key."""
    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> Any:
        calls.append(kwargs)
        offline = kwargs.get("mode") == "offline"
        run_id = kwargs.get("id", os.environ.get("WANDB_RUN_ID"))  # as W&B does
        return SimpleNamespace(id=run_id, offline=offline, url="https://wandb.test/run", dir="here/run/files")

    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the user was asked")

    wandb.teardown()  # it reads the environment once
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("getpass.getpass", asked)
    monkeypatch.setattr("click.prompt", asked)
    return calls


def test_without_an_account_it_is_offline_and_says_how_to_sync(inits, caplog):
    logger = WandbLogger()
    with caplog.at_level("INFO"):
        _ = logger.experiment
    assert inits[0]["mode"] == "offline"
    assert "W&B: not logged in, so the run is logged offline" in caplog.text
    assert logger.how_to_look() == "wandb sync here/run   (after wandb login)"
    assert len(inits) == 1


def test_with_an_account_it_is_online(inits, monkeypatch):
    given = []
    monkeypatch.setattr(wandb, "login", lambda **kwargs: given.append(kwargs) or True)
    logger = WandbLogger()
    _ = logger.experiment
    assert inits[0].get("mode") != "offline"
    assert given[0]["prompt"] is False
    assert logger.how_to_look() == "https://wandb.test/run"


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_the_users_mode_is_obeyed(inits, monkeypatch, caplog, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("there is no need to log in"))
    with caplog.at_level("INFO"):
        _ = WandbLogger().experiment
    assert inits[0].get("mode") is None  # W&B reads the variable by itself
    assert "not logged in" not in caplog.text


def test_online_without_a_key_is_still_offline(inits, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    _ = WandbLogger().experiment
    assert inits[0]["mode"] == "offline"


def test_a_run_gets_the_runs_folder_and_name(inits, tmp_path):
    run = RunLogger(tmp_path, "digits")
    logger = WandbLogger(project="p", tags=("a", "b"), notes="n", group="g")
    logger.belong_to(run, None)
    assert not (tmp_path / "digits").exists()
    _ = logger.experiment
    (init,) = inits
    assert init["dir"] == logger.save_dir == str(tmp_path / "digits" / "version_0")
    assert (tmp_path / "digits" / "version_0").is_dir()
    assert init["name"] == "digits/version_0"
    assert (init["project"], init["tags"], init["notes"], init["group"]) == ("p", ["a", "b"], "n", "g")
    assert init["resume"] == "allow"
    assert logger.version == init["id"]
    assert len(init["id"]) == 8


def test_what_the_user_gave_is_kept(inits, tmp_path):
    logger = WandbLogger(name="mine", id="given", save_dir=str(tmp_path / "w"))
    logger.belong_to(RunLogger(tmp_path, "digits"), None)
    _ = logger.experiment
    assert (inits[0]["name"], inits[0]["id"], inits[0]["dir"]) == ("mine", "given", str(tmp_path / "w"))


def test_a_resumed_run_keeps_its_id(inits, tmp_path):
    logger = WandbLogger()
    logger.belong_to(RunLogger(tmp_path, "digits"), "abcd1234")
    assert logger.version == "abcd1234"
    _ = logger.experiment
    assert inits[0]["id"] == "abcd1234"
    assert WandbLogger().version != WandbLogger().version


def test_an_agent_of_a_sweep_says_which_run_it_is(inits, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "agents12")
    assert WandbLogger().version == "agents12"
    assert WandbLogger(id="given").version == "given"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    logger = WandbLogger(project="p", entity="e", tags=["a"])
    logger.belong_to(RunLogger(tmp_path, "digits"), None)
    _ = logger.experiment
    assert inits[0].keys().isdisjoint({"project", "entity", "id"})  # W&B would warn that it ignores them
    assert (inits[0]["name"], inits[0]["tags"]) == ("digits/version_0", ["a"])
    assert logger.version == "agents12"


def test_the_project_is_the_given_one_else_the_environments(inits, monkeypatch, tmp_path):
    _ = WandbLogger(save_dir=str(tmp_path)).experiment
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    _ = WandbLogger(save_dir=str(tmp_path)).experiment
    _ = WandbLogger(project="given", save_dir=str(tmp_path)).experiment
    assert [call["project"] for call in inits] == ["diffusion_lightning", "theirs", "given"]


def test_the_commit_is_that_of_the_working_directory(inits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _ = WandbLogger(save_dir=str(tmp_path / "w")).experiment
    assert inits[0]["settings"]["git_root"] == str(tmp_path)
    monkeypatch.setenv("WANDB_GIT_ROOT", "/other")
    _ = WandbLogger().experiment
    assert "git_root" not in inits[1]["settings"]


def test_other_processes_open_no_run(inits, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    WandbLogger().experiment.log({"a": 1})
    assert inits == []


def test_disabled_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    logger = WandbLogger()
    logger.belong_to(RunLogger(tmp_path, "digits"), None)
    logger.log_metrics({"a": 1.0}, 1)
    assert isinstance(logger.how_to_look(), str)
    wandb.finish()
    wandb.teardown()
    assert not (tmp_path / "digits" / "version_0" / "wandb").exists()


# ---- W&B has each step once


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Any:
    """Makes a run's W&B logger, offline for real; ``end`` closes it and returns the first step that W&B has not got."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    folder = tmp_path / "digits" / "version_0"

    def make(resume_step: int | None = None) -> tuple[RunLogger, WandbLogger]:
        run = RunLogger(tmp_path, "digits", *(() if resume_step is None else (folder, resume_step)))
        logger = WandbLogger(id="abcd")
        logger.belong_to(run, None if resume_step is None else "abcd")
        return run, logger

    def end() -> int:
        wandb.finish()
        wandb.teardown()
        return next_step(folder, "abcd")

    make.end = end  # type: ignore[attr-defined]
    yield make
    wandb.finish()
    wandb.teardown()


def test_a_row_is_given_when_it_is_complete(offline, monkeypatch):
    _, logger = offline()
    given = []
    monkeypatch.setattr(logger.experiment, "log", lambda row, **kwargs: given.append((row, kwargs)))
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"b": 2.0}, 1)
    logger.log_metrics({"c": 3.0})  # belongs to the newest
    assert given == []
    logger.log_metrics({"a": 4.0}, 5)
    logger.finalize("success")
    logger.finalize("success")
    assert given == [
        ({"a": 1.0, "b": 2.0, "c": 3.0, "trainer/global_step": 1}, {"step": 1, "commit": True}),
        ({"a": 4.0, "trainer/global_step": 5}, {"step": 5, "commit": True}),
    ]


def test_a_resumed_run_gives_what_is_missing_and_nothing_twice(offline, monkeypatch):
    run, logger = offline()
    for step in range(3):
        log(run, step)
        logger.log_metrics({"loss": step / 2}, step)
    log(run, 3)  # the process is killed: this row was logged, W&B has no row after 2
    logger.finalize("failed")
    assert offline.end() == 3

    run, logger = offline(resume_step=5)
    given = []
    assert logger.experiment is not None
    monkeypatch.setattr(logger.experiment, "log", lambda row, **kwargs: given.append((row, kwargs["step"])))
    logger.log_metrics({"loss": 1.0}, 2)  # W&B has it
    logger.log_metrics({"loss": 2.5}, 5)
    logger.finalize("success")
    assert [step for _, step in given] == [3, 5]
    assert given[0][0] == {"loss": 1.5, "trainer/global_step": 3}


def test_a_torn_wandb_file_is_read_up_to_its_end(offline, tmp_path):
    _, logger = offline()
    for step in range(300):  # more than a block
        logger.log_metrics({f"name_{n}": float(step) for n in range(5)}, step)
    logger.finalize("success")
    assert offline.end() == 300
    (path,) = (tmp_path / "digits" / "version_0").glob("wandb/offline-run-*/*.wandb")
    whole = path.read_bytes()
    assert len(whole) > 2 * 32768
    found = []
    for size in range(0, len(whole), 4999):
        path.write_bytes(whole[:size])
        found.append(next_step(tmp_path / "digits" / "version_0", "abcd"))
    assert found == sorted(found)
    assert 0 == found[0] < found[-2] < 300
    assert next_step(tmp_path / "digits" / "version_0", "other") == 0


# ---- W&B out of reach


def test_a_run_that_cannot_be_online_is_offline(inits, monkeypatch, tmp_path):
    def refuse(**_: Any) -> None:
        raise wandb.errors.AuthenticationError("the key is refused\nat length")

    monkeypatch.setattr(wandb, "login", refuse)
    logger = WandbLogger()
    with pytest.warns(UserWarning, match="logged offline, since it cannot be online: the key is refused$") as told:
        _ = logger.experiment
    assert len(told) == 1
    assert [init["mode"] for init in inits] == ["offline"]


def test_a_run_that_gets_no_answer_is_offline(inits, monkeypatch):
    init = wandb.init

    def unanswered(**kwargs: Any) -> Any:
        if kwargs.get("mode") != "offline":
            raise wandb.errors.CommError("no answer within 20 s")
        return init(**kwargs)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unanswered)
    with pytest.warns(UserWarning, match="logged offline, since it cannot be online: no answer within 20 s$"):
        assert WandbLogger().experiment.offline


def test_waiting_is_limited_unless_the_user_says_how_long(inits, monkeypatch):
    _ = WandbLogger().experiment
    assert inits[0]["settings"]["init_timeout"] == 20
    assert inits[0]["settings"]["finish_timeout"] == 30
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "500")
    _ = WandbLogger().experiment
    assert "finish_timeout" not in inits[1]["settings"]
    assert wandb.Settings(**inits[0]["settings"]).init_timeout == 20  # W&B knows them all


# ---- TensorBoard


def test_tensorboard_is_in_the_runs_folder(tmp_path):
    run = RunLogger(tmp_path, "digits")
    logger = TensorBoardLogger()
    logger.belong_to(run)
    assert not (tmp_path / "digits").exists()
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert len(list((tmp_path / "digits" / "version_0" / "tensorboard").glob("events.*"))) == 1

    own = TensorBoardLogger(str(tmp_path / "own"))
    own.belong_to(run)
    own.log_metrics({"loss": 1.0}, 0)
    assert Path(own.log_dir) == tmp_path / "own" / "lightning_logs" / "version_0"
    assert len(list(Path(own.log_dir).glob("events.*"))) == 1


@pytest.mark.parametrize("cls", [TensorBoardLogger, loggers.TensorBoardLogger])
def test_tensorboard_goes_on_in_its_folder_without_what_is_void(tmp_path, monkeypatch, cls):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    seconds = itertools.count(time.time())  # its files are read by the second they were begun in, then by "9" > "10"
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds)))
    first = cls(str(tmp_path))
    for step in range(5):
        first.log_metrics({"loss": step / 2}, step)
    first.finalize("failed")
    second = cls(str(tmp_path))
    go_on(second, first.version, 3)
    second.log_hyperparams({"a": 1})
    for step in range(3, 6):
        second.log_metrics({"loss": step / 2}, step)
    second.finalize("success")
    assert second.log_dir == first.log_dir
    events = EventAccumulator(first.log_dir)
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(6))
    assert events.Tags()["scalars"] == ["loss"]


def test_tensorboard_goes_on_in_the_middle_of_a_step(tmp_path, monkeypatch):
    """Twice, once killed in between: what it had logged before the checkpoint is there, and the rest of it once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    seconds = itertools.count(time.time())
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds)))
    for part in range(3):
        logger = TensorBoardLogger(str(tmp_path))
        if part > 0:
            go_on(logger, 0, 3, {"loss": 1.0, "lr": 0.5})
        for step in range(3 if part else 0, 3):
            logger.log_metrics({"loss": step / 2, "lr": 0.5}, step)
        logger.log_metrics({"val": float(part)}, 2)
        logger.log_metrics({"loss": 1.5, "lr": 0.25}, 3)
        logger.finalize("failed")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found.pop("hp_metric", None) is None
    assert found == {
        "loss": [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)],
        "lr": [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.25)],
        "val": [(2, 2.0)],
    }


def test_the_newest_row_can_be_asked_for(tmp_path):
    run = RunLogger(tmp_path, "run")
    assert run.row(0) == {}
    run.log_metrics({"loss": 0.1, "epoch": 0}, 4)
    run.log_metrics({"name": "x", "lr": math.nan}, 4)
    row = run.row(4)
    assert math.isnan(row.pop("lr"))
    assert row == {"loss": 0.1, "epoch": 0.0}
    assert run.row(3) == run.row(5) == {}
