import csv
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lightning import RunLogger, WandbLogger


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
    assert len(rows(folder)) == 5  # nothing is lost by merely looking
    log(resumed, 2, val=7.0)
    log(resumed, 4)
    assert rows(folder) == [
        {"step": "0", "loss": "0.0"},
        {"step": "1", "loss": "0.5"},
        {"step": "1", "fid": "3.0"},
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
        return SimpleNamespace(id=kwargs["id"], offline=offline, url="https://wandb.test/run", dir="here/run/files")

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
