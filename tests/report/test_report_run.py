"""What is read of a run's folder is what was written there, whatever state it is in."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from run_folders import CONFIG, animation, course, picture

from diffusion_lightning.commands.run_folder import find_run
from diffusion_lightning.loggers import RunLogger
from diffusion_lightning.report.run import labels, read_run


def test_the_series_are_what_was_written(make_run):
    rows = [
        {"step": 4, "epoch": 0, "train/loss_step": 0.1 + 0.2, "val/loss": math.nan},
        {"step": 9, "epoch": 0, "train/loss_step": 1e-300, "train/loss_epoch": 2.5},
        {"step": 14, "epoch": 1, "train/loss_step": math.inf},
    ]
    run = read_run(make_run(rows=rows))
    assert run.metrics == ["train/loss_epoch", "train/loss_step", "val/loss"]
    assert run.series("train/loss_step") == [(4, 0.1 + 0.2), (9, 1e-300), (14, math.inf)]
    assert run.series("train/loss_epoch") == [(9, 2.5)]
    ((step, value),) = run.series("val/loss")
    assert step == 4
    assert math.isnan(value)
    assert run.series("fid") == []
    assert (run.steps, run.epochs) == (15, 1)
    assert run.flaws == []


def test_a_torn_last_line_is_no_row(make_run):
    folder = make_run()
    path = folder / "metrics.csv"
    whole = read_run(folder)
    path.write_bytes(path.read_bytes()[:-7])
    torn = read_run(folder)
    assert torn.rows == whole.rows[:-1]
    assert (whole.epochs, torn.epochs) == (3, 2)
    assert (whole.is_finished, torn.is_finished) == (True, False)


def test_a_resumed_run_has_every_step_once(make_run, monkeypatch):
    folder = make_run(rows=course(epochs=2))
    logger = RunLogger(folder.parent.parent, folder.parent.name, resume=folder, resume_step=10)
    again = [{**row, "train/loss_step": 7.0} for row in course(epochs=3) if row["step"] >= 10]
    for row in again:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    run = read_run(folder)
    assert [step for step, _ in run.series("train/loss_step")] == [4, 9, 14, 19, 24, 29]
    assert [value for _, value in run.series("train/loss_step")][2:] == [7.0] * 4


def test_where_steps_go_back_what_came_after_is_void(make_run):
    """As in a file of another logger, which only appends."""
    folder = make_run(rows=[])
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows([(0, 1), (10, 2), (20, 3), (30, 4), (10, 5), (15, 6)])
    assert read_run(folder).series("loss") == [(0, 1), (10, 5), (15, 6)]


def test_pictures_and_animations_by_folder_and_epoch(make_run):
    folder = make_run(pictures={"samples": [0, 3, 12], "denoising": [12], "grids/ema": [1]})
    animation(folder / "denoising" / "epoch=0003.gif", [(0, 0, 0), (255, 255, 255)])
    animation(folder / "moving" / "epoch=0012.gif", [(0, 0, 0), (255, 255, 255)])
    for other in ("samples/epoch=0004.png.part", "samples/epoch=last.png", "wandb/run/files/epoch=0001.png", "x.png"):
        picture(folder / "samples" / "epoch=0000.png", (0, 0, 0))
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "samples" / "epoch=0000.png", folder / other)
    run = read_run(folder)
    assert {name: list(found) for name, found in run.pictures.items()} == {
        "samples": [0, 3, 12],
        "denoising": [12],
        "grids/ema": [1],
    }
    assert run.pictures["samples"][12] == folder / "samples" / "epoch=0012.png"
    assert {name: list(found) for name, found in run.animations.items()} == {"denoising": [3], "moving": [12]}


def test_of_an_empty_run_everything_is_told_to_be_missing(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    run = read_run(folder)
    told = "\n".join(run.flaws)
    for missing in ("no config.yaml", "no metrics.csv", "no pictures", "no checkpoint"):
        assert missing in told
    assert len(run.flaws) == 4
    assert (run.steps, run.epochs, run.is_finished, run.metrics, run.began, run.written) == (
        0,
        0,
        False,
        [],
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer: [", "config.yaml cannot be read"),
        ("- a\n- b\n", "holds no settings by name"),
        ("trainer: !!python/object/apply:os.mkdir [made]\n", "config.yaml cannot be read"),
    ],
)
def test_a_config_that_cannot_be_read(make_run, tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    folder = make_run()
    (folder / "config.yaml").write_text(text)
    run = read_run(folder)
    assert run.config == {}
    assert run.config_text == text
    assert [flaw for flaw in run.flaws if told in flaw] == run.flaws
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("limits", "finished"),
    [
        ({"max_epochs": 3}, True),
        ({"max_epochs": 4}, False),
        ({"max_epochs": -1, "max_steps": 30}, True),
        ({"max_epochs": None, "max_steps": 31}, False),
        ({"max_epochs": None, "max_steps": -1}, False),
    ],
)
def test_finished_is_what_has_made_its_epochs_or_steps(make_run, limits, finished):
    assert read_run(make_run(config={"trainer": limits})).is_finished == finished


def test_evaluations(make_run):
    folder = make_run()
    metrics = {"fid/mnist@1000": 2.2, "kid/mnist@1000": 0.01, "kid_std/mnist@1000": 0.005}
    good = {"checkpoint": "a/last.ckpt", "step": 7, "sampler": "Heun", "nfe": 35, "num": 1000, "metrics": metrics}
    other = {"checkpoint": "b/best.ckpt", "sampler": "DDIM(steps=9)", "guidance": "G(weight=2)", "metrics": {}}
    for name, content in {
        "b": json.dumps(good),
        "a": json.dumps({"sweep": [other, good], "best": "Heun"}),
        "torn": json.dumps(good)[:-5],
        "list": "[]",
        "other": "{}",
    }.items():
        (folder / "evaluations" / name).mkdir(parents=True)
        (folder / "evaluations" / name / "results.json").write_text(content)
    picture(folder / "evaluations" / "b" / "neighbours.png", (1, 2, 3))
    run = read_run(folder)
    first, second, third = run.evaluations
    assert (first.checkpoint, first.step, first.sampler) == ("best.ckpt", None, "DDIM(steps=9), G(weight=2)")
    assert (first.nfe, first.num, first.metrics) == (None, None, {})
    assert second == third
    assert (second.checkpoint, second.step, second.sampler, second.nfe, second.num) == (
        "last.ckpt",
        7,
        "Heun",
        35,
        1000,
    )
    assert second.metrics == {"fid/mnist@1000": 2.2, "kid/mnist@1000": 0.01}
    assert run.evaluation_pictures == [folder / "evaluations" / "b" / "neighbours.png"]
    assert run.pictures.keys() == {"samples"}
    assert [flaw.split()[0] for flaw in run.flaws] == [
        f"evaluations/{n}/results.json" for n in ("list", "other", "torn")
    ]


# ---- which run is meant


def test_the_newest_version_of_a_named_run(make_run):
    folders = [make_run(f"quickstart/version_{number}") for number in (9, 10, 2)]
    (folders[0].parent / "version_11").write_text("a file")
    assert find_run(folders[0].parent) == folders[1]
    assert find_run(folders[2]) == folders[2]


def test_a_folder_of_a_run_that_has_left_nothing_or_only_pictures_yet(tmp_path):
    (tmp_path / "q" / "version_0").mkdir(parents=True)
    picture(tmp_path / "mine" / "samples" / "epoch=0000.png", (1, 2, 3))
    assert find_run(tmp_path / "q") == find_run(tmp_path / "q" / "version_0") == tmp_path / "q" / "version_0"
    assert find_run(tmp_path / "mine") == tmp_path / "mine"


def test_what_is_no_run(make_run, tmp_path):
    folder = make_run()
    make_run("other/version_0")
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "nothing": "there is no such folder",
        tmp_path: "holds runs of the names other, quickstart: give one of these folders",
        tmp_path / "empty": "is no run: give a run's folder",
        folder / "config.yaml": f"is a file: give the folder of the run, {folder}",
        folder / "checkpoints" / "last.ckpt": f"is a file: give the folder of the run, {folder}",
    }.items():
        with pytest.raises(FileNotFoundError) as raised:
            find_run(path)
        assert message in str(raised.value)


def test_labels_tell_runs_apart_with_as_little_as_possible():
    paths = [Path("/a/quickstart/version_0"), Path("/a/quickstart/version_1")]
    assert labels(paths[:1]) == ["quickstart/version_0"]
    assert labels(paths) == ["quickstart/version_0", "quickstart/version_1"]
    assert labels([paths[0], Path("/b/quickstart/version_0")]) == ["a/quickstart/version_0", "b/quickstart/version_0"]
    assert labels([Path("/x/first"), Path("/x/second")]) == ["first", "second"]


# ---- where it comes from


ENVIRONMENT = """\
started: '2026-01-02T03:04:05+00:00'
command: lightning fit --config configs/quickstart.yaml
git: {commit: f00d, dirty: true}
diffusion_lightning: 0.2.0
python: 3.11.7
devices: {type: cuda, names: [One, Two], cpus: 8, processes: 2}
packages: {torch: 2.15.0, numpy: 2.4.6, odd: null}
"""


def test_where_it_was_started(make_run):
    folder = make_run()
    (folder / "environment.yaml").write_text(ENVIRONMENT)
    (folder / "environment.before_resume_0.yaml").write_text(ENVIRONMENT.replace("-02T", "-01T"))
    (folder / "slurm_job").write_text("123_4")
    found = read_run(folder)
    assert found.origin.packages == {"torch": "2.15.0", "numpy": "2.4.6"}
    assert (found.origin.commit, found.origin.python, found.origin.slurm_job) == (
        "f00d, with changes",
        "3.11.7",
        "123_4",
    )
    assert found.origin.devices == "2 × cuda (One, Two)"
    assert found.origin.parts == 2
    assert found.began.isoformat().startswith("2026-01-0")
    assert found.began.timestamp() == 1767236645


@pytest.mark.parametrize("text", ["", "[1]", "git: 3\npackages: [1]\ndevices: x\nstarted: never", "a: [", "\0"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(make_run, text):
    folder = make_run()
    (folder / "environment.yaml").write_text(text)
    origin = read_run(folder).origin
    assert (origin.packages, origin.commit, origin.devices, origin.began) == ({}, None, None, None)


def test_former_configs_oldest_first(make_run):
    folder = make_run()
    for number in (10, 9):
        write = {**CONFIG, "seed_everything": number}
        (folder / f"config.before_resume_{number}.yaml").write_text(json.dumps(write))
    assert [config["seed_everything"] for config in read_run(folder).former_configs] == [9, 10]
