"""`lightning report`: where the page goes, and every mistake as one line. What is in it: tests/report."""

import csv

import pytest
from PIL import Image

from diffusion_lightning.commands import cli


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder ``runs/q/version_0`` of a run, in the folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "q" / "version_0"
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "samples" / "epoch=0000.png")
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["step", "epoch", "val/loss"], [9, 0, 0.5]])
    return folder


def test_the_page_of_one_run_is_in_its_folder(run, capsys):
    for given in ("runs/q", "runs/q/version_0"):
        (run / "report.html").unlink(missing_ok=True)
        cli.main(["report", given])
        assert "<h1>q/version_0</h1>" in (run / "report.html").read_text(encoding="utf-8")
        output = capsys.readouterr()
        assert "runs/q/version_0/report.html" in output.out
        assert len(output.out.splitlines()) == 1


def test_the_page_of_several_is_here(run, tmp_path):
    other = tmp_path / "runs" / "q" / "version_1"
    run.rename(other)
    run.mkdir()
    (run / "config.yaml").write_text("seed_everything: 1\n")
    cli.main(["report", "runs/q/version_0", "runs/q", "./runs/q/version_1"])
    assert "<h1>2 runs side by side</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (run / "report.html").exists()
    assert not (other / "report.html").exists()


def test_another_place_and_a_former_page(run, tmp_path):
    page = tmp_path / "new" / "page.html"
    cli.main(["report", "runs/q", "--output", str(page)])
    first = page.read_text(encoding="utf-8")
    (run / "samples" / "epoch=0000.png").unlink()
    cli.main(["report", "runs/q", "--output", str(page)])
    second = page.read_text(encoding="utf-8")
    assert "epoch=0000" not in second
    assert len(second) < len(first)
    assert list(page.parent.iterdir()) == [page]
    assert not (run / "report.html").exists()


MISTAKES = {
    "no run at all": ((), "runs"),
    "no such folder": (("runs/p",), "run='runs/p': there is no such folder"),
    "the folder of all runs": (("runs",), "run='runs': holds runs of the names q: give one of these folders"),
    "a folder of something else": (("runs/q/version_0/samples",), "is no run"),
    "a file of a run": (("runs/q/version_0/metrics.csv",), "is a file: give the folder of the run, runs/q/version_0"),
    "one of two": (("runs/q", "runs/p"), "run='runs/p': there is no such folder"),
    "an output of another kind": (("runs/q", "--output", "a.png"), "output='a.png': must end in .html"),
    "an output that is a folder": (("runs/q", "--output", "folder.html"), "output='folder.html': is a folder"),
    "an output below a file": (("runs/q", "--output", "file/a.html"), "output='file/a.html': no folder can be made"),
    "an unknown option": (("runs/q", "--ouput", "a.html"), "--ouput"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(run, tmp_path, capsys, mistake):
    options, message = MISTAKES[mistake]
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as done:
        cli.main(["report", *options])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert done.value.code == 1
    assert line.startswith("lightning: error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_written(run, capsys, monkeypatch):
    """As on a full disk; the former page stays."""
    (run / "report.html").write_text("former")
    (run / "report.html.part").mkdir()
    with pytest.raises(SystemExit) as done:
        cli.main(["report", "runs/q"])
    assert done.value.code == 1
    assert "output='runs/q/version_0/report.html': cannot be written" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "former"
