"""Tables: every cell whole and aligned, without lines or colours where the output is no terminal."""

import re

import rich.console

from diffusion_lightning.tables import Summary, print_table


def test_a_table_in_a_file_is_plain_and_whole(capsys):
    long = "x" * 300
    print_table("Title", ("what", "how much"), [("speed", "12"), ("a longer name", long), ("[bold]", "3")])
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    title, head, *rows = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert title.strip() == "Title"
    assert head.split() == ["what", "how", "much"]
    assert [row.split() for row in rows] == [["speed", "12"], ["a", "longer", "name", long], ["[bold]", "3"]]
    assert len({len(line) for line in (head, *rows)}) == 1, "the last column is flush right"


def test_a_summary_is_framed_on_a_terminal_and_plain_elsewhere(capsys, monkeypatch):
    summary = Summary([("steps", "12 in [4] epochs")], [[["metric", "val/loss"], ["best", "0.15"], ["last", "0.16"]]])
    summary.show()
    assert capsys.readouterr().out.splitlines() == [
        "Summary",
        "  steps     12 in [4] epochs",
        "  metric      val/loss",
        "    best          0.15",
        "    last          0.16",
    ]
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    summary.show()
    out = capsys.readouterr().out
    assert "12 in [4] epochs" in out
    assert re.search(r"best +0\.15", out)
    assert "───" in out
