"""The page holds what is known of the runs, escaped, and refers to nothing outside of itself."""

import copy
import json
import re
import shlex

import pytest
from page_reader import PageReader
from run_folders import CONFIG, animation, course, picture

from diffusion_lightning.commands.evaluation_report import Results
from diffusion_lightning.report.page import render
from diffusion_lightning.report.pictures import embed
from diffusion_lightning.report.run import read_run

ATTACK = "</script></style></pre><script>alert(1)</script><img src=x onerror='alert(2)'>\"{{ 7 * 7 }}"


def page_of(*folders) -> tuple[str, PageReader]:
    html = render([read_run(folder) for folder in folders])
    return html, PageReader(html)


def test_one_run(make_run):
    folder = make_run(pictures={"samples": [0, 1, 2], "denoising": [2]})
    animation(folder / "denoising" / "epoch=0002.gif", [(0, 0, 0), (255, 255, 255)])
    _, page = page_of(folder)
    assert [text for _, text in page.all("h1")] == ["quickstart/version_0"]
    assert [text for _, text in page.all("title")] == ["quickstart/version_0"]
    images = [found for found, _ in page.all("img")]
    files = [folder / "samples" / f"epoch={epoch:04d}.png" for epoch in range(3)]
    files += [folder / "denoising" / "epoch=0002.png", folder / "denoising" / "epoch=0002.gif"]
    assert [found["src"] for found in images] == [embed(path).uri for path in files]
    assert ["hidden" in found for found in images] == [True, True, False, False, False]
    ((slider, _),) = page.all("input")
    assert json.loads(slider["data-epochs"]) == [0, 1, 2]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    assert page.table("results") == [
        ["metric", "best", "at epoch", "last", "at epoch"],
        ["fid/mnist@50", "7", "2", "7", "2"],
        ["train/loss_epoch", "0.25", "2", "0.25", "2"],
        ["val/loss", "0.3333", "2", "0.3333", "2"],
    ]
    assert [text for _, text in page.all("figure", class_="chart")][1].startswith("FID")
    ((_, text),) = page.all("section", id="time")
    assert "30 s in the epochs that have ended" in text
    assert re.findall(r"([a-z]+)([\d.]+ s)([\d.]+) %", text) == [
        ("data", "1.5 s", "5.0"),
        ("step", "18 s", "60.0"),
        ("sampling", "3.0 s", "10.0"),
        ("evaluation", "6.0 s", "20.0"),
        ("checkpoint", "0.8 s", "2.5"),
        ("other", "0.8 s", "2.5"),
    ]
    assert "finished" in page.all("p", class_="when")[0][1]
    assert page.all("ul", class_="flaws") == []


def test_nothing_outside_is_referred_to(make_run):
    html, page = page_of(make_run("a/version_0"), make_run("a/version_1"))
    for name, attributes, _ in page.elements:
        for attribute, value in attributes.items():
            if attribute in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert value.startswith(("data:", "#")), (name, attribute, value)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {
        f"#{found['id']}" for _, found, _ in page.elements if "id" in found
    }
    assert set(re.findall(r"https?://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, in the script
    ((policy, _),) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_ids_and_what_points_to_them(make_run):
    _, page = page_of(make_run("a/version_0"), make_run("a/version_1"))
    ids = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["href"][1:] for found, _ in page.all("a")} <= set(ids)
    assert {found["data-copy"] for found, _ in page.all("button", class_="copy")} <= set(ids)


def test_what_files_say_is_text_and_nothing_else(make_run):
    config = copy.deepcopy(CONFIG)
    config["data"]["init_args"]["root"] = config["data"]["class_path"] = ATTACK
    rows = [{**row, f"fid/{ATTACK}": 1.0} for row in course()]
    folder = make_run("x<b>/version_0", config=config, rows=rows, pictures={"samples": [0], "<i>'\"&": [0, 1]})
    evaluation = {"checkpoint": ATTACK, "sampler": ATTACK, "metrics": {ATTACK: 1.0}}
    (folder / "evaluations" / "<u>").mkdir(parents=True)
    (folder / "evaluations" / "<u>" / "results.json").write_text(json.dumps(evaluation))
    picture(folder / "evaluations" / "<u>" / "<u>.png", (0, 0, 0))
    (folder / "slurm_job").write_text(ATTACK)
    (folder / "config.before_resume_0.yaml").write_text("seed_everything: <script>alert(3)</script>")
    other = make_run("x<b>/version_1")
    plain = page_of(make_run("y/version_0"), make_run("y/version_1"))[1]
    for folders in ([folder], [folder, other]):
        html, page = page_of(*folders)
        assert {name for name, _, _ in page.elements} <= {name for name, _, _ in plain.elements} | {"figcaption"}
        assert len(page.all("script")) == 1
        assert not [found for _, found, _ in page.elements if any(name.startswith("on") for name in found)]
        assert "7 * 7" in html
        assert " ".join(ATTACK.split()) in page.all("section", id="config")[0][1]


def test_the_config_is_there_line_by_line(make_run):
    folder = make_run()
    _html, page = page_of(folder)
    found = "".join(next(texts for _, found, texts in page.elements if found.get("id") == "config-1"))
    assert found == (folder / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["quickstart/version_0", "it's a run/version_0"])
def test_the_commands_are_words_that_a_shell_passes_on_whole(make_run, name):
    folder = make_run(name)
    (folder / "checkpoints" / "epoch=0001.ckpt").write_bytes(b"")
    _, page = page_of(folder)
    config, checkpoints = str(folder / "config.yaml"), folder / "checkpoints"
    found = ["".join(texts) for _, found, texts in page.elements if found.get("id", "").startswith("command-")]
    sample = ["lightning", "sample", "--ckpt_path", "CHECKPOINT", "--num", "64", "--output", "samples.png"]
    assert [shlex.split(line) for line in found] == [
        ["lightning", "fit", "--config", config],
        ["lightning", "fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", "6"],
        [word.replace("CHECKPOINT", str(checkpoints / "last.ckpt")) for word in sample],
        [word.replace("CHECKPOINT", str(checkpoints / "epoch=0001.ckpt")) for word in sample],
    ]


def test_a_run_that_is_not_finished_is_resumed_as_it_is(make_run):
    folder = make_run(rows=course(epochs=2)[:-1])
    _, page = page_of(folder)
    assert any(text.endswith("--ckpt_path last") for _, text in page.all("pre"))
    assert "1 of 3 epochs: still going, or stopped" in page.all("p", class_="when")[0][1]


def test_a_run_without_anything(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for count in (1, 2):
        (tmp_path / "more" / "checkpoints").mkdir(parents=True, exist_ok=True)
        _, page = page_of(*[tmp_path / "run", tmp_path / "more"][:count])
        assert len(page.all("ul", class_="flaws")) == count
        told = page.all("ul", class_="flaws")[0][1]
        for missing in ("no config.yaml", "no metrics.csv", "no pictures", "no checkpoint"):
            assert missing in told
        text = page.all("main")[0][1]
        for missing in ("There are none.", "No metric has been logged.", "nothing has been logged", "Not known"):
            assert missing in text


def test_a_long_run_says_that_not_all_is_shown(make_run):
    _, page = page_of(make_run(pictures={"samples": range(150)}))
    assert len(page.all("img")) == 60
    assert "60 of 150 epochs are shown, evenly spread" in page.all("div", class_="figures beside")[0][1]


def test_settings_changed_by_a_resume(make_run):
    folder = make_run()
    former = copy.deepcopy(CONFIG)
    former["trainer"]["max_epochs"] = 2
    former["ckpt_path"] = "last"
    (folder / "config.before_resume_0.yaml").write_text(json.dumps(former))
    _, page = page_of(folder)
    assert page.table("config") == [["setting", "before", "after"], ["trainer.max_epochs", "2", "3"]]


# ---- several runs


def test_several_runs_side_by_side(make_run):
    other = copy.deepcopy(CONFIG)
    other["model"]["optimizer"]["init_args"]["lr"] = 0.02
    first = make_run("quickstart/version_0")
    second = make_run("quickstart/version_1", config=other, rows=course(scale=0.5), pictures={"samples": [1]}, hue=200)
    _, page = page_of(first, second)
    names = ["quickstart/version_0", "quickstart/version_1"]
    assert page.table("settings") == [["setting", *names], ["model.optimizer.lr", "0.01", "0.02"]]
    assert page.table("results") == [
        ["metric", *names],
        ["fid/mnist@50", "7epoch 2; last 7", "7epoch 2; last 7"],
        ["train/loss_epoch", "0.25epoch 2; last 0.25", "0.125bestepoch 2; last 0.125"],
        ["val/loss", "0.3333epoch 2; last 0.3333", "0.1667bestepoch 2; last 0.1667"],
    ]
    assert len(page.all("td", class_="best")) == 2
    panes = [json.loads(found["data-shown"]) for found, _ in page.all("div", class_="pane")]
    assert panes == [[0, 1, 2], [None, 1, 1]]
    ((slider, _),) = page.all("input")
    assert json.loads(slider["data-epochs"]) == [0, 1, 2]
    legends = [text for _, text in page.all("ul", class_="legend")]
    assert set(legends) == {" ".join(names)}
    assert len(page.all("div", class_="bar")) == 2


def test_runs_with_the_same_settings_say_so(make_run):
    _, page = page_of(make_run("a/version_0"), make_run("a/version_1"))
    assert "the runs have the same settings" in page.all("section", id="settings")[0][1]
    assert page.all("td", class_="best") == []


def test_evaluations_in_one_table(make_run):
    """As `lightning evaluate` writes them."""
    folders = [make_run("a/version_0"), make_run("a/version_1")]
    for folder, value in zip(folders, (2.25, 1.5), strict=True):
        entry = {"checkpoint": "runs/last.ckpt", "step": 1680, "epoch": 12, "sampler": "Heun(steps=9)", "nfe": 17}
        entry |= {"num": 1000, "metrics": {"fid/mnist@1000": value, "is/mnist@1000": value}, "settings": {}}
        results = Results(is_sweep=False)
        results.entries.append({**entry, "precision": "32-true", "seed": 0, "feature": "mnist", "reference": "digits"})
        results.entries[0]["seconds"] = 1.0
        results.families.append("Heun")
        (folder / "evaluations" / "heun").mkdir(parents=True)
        results.write(folder / "evaluations" / "heun")
        picture(folder / "evaluations" / "heun" / "neighbours.png", (int(10 * value), 0, 0))
    _, page = page_of(*folders)
    names = [
        "run",
        "checkpoint",
        "step",
        "sampler",
        "network evaluations",
        "samples",
        "fid/mnist@1000",
        "is/mnist@1000",
    ]
    assert page.table("evaluations") == [
        names,
        ["a/version_0", "last.ckpt", "1,680", "Heun(steps=9)", "17", "1,000", "2.25", "2.25best"],
        ["a/version_1", "last.ckpt", "1,680", "Heun(steps=9)", "17", "1,000", "1.5best", "1.5"],
    ]
    sources = [found["src"] for found, _ in page.all("img")]
    for folder in folders:
        assert embed(folder / "evaluations" / "heun" / "neighbours.png").uri in sources
