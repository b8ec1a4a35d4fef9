"""What an evaluation leaves on disk and on the screen."""

import json

import pytest

from diffusion_lightning.commands import evaluation_report
from diffusion_lightning.commands.evaluation_report import Results, new_folder
from diffusion_lightning.commands.usage import UsageError


def entry(sampler: str, nfe: int, fid: float | None, **more) -> dict:
    metrics = {"is/mnist@9": 3.25, "is_std/mnist@9": 0.5, "bits_per_dim@4": 2.0, "bits_per_dim_error@4": 0.125}
    if fid is not None:
        metrics = {"fid/mnist@9": fid, **metrics}
    common = {"checkpoint": "x/last.ckpt", "step": 7, "epoch": 1, "num": 9, "seed": 0, "precision": "32-true"}
    return {
        **common,
        "sampler": sampler,
        "nfe": nfe,
        "feature": "mnist",
        "reference": "MNIST",
        "metrics": metrics,
        "settings": {"batch_size": 4, "kid": {"subsets": 100, "subset_size": 9}},
        "seconds": 1.5,
        **more,
    }


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_one_sampler(tmp_path, capsys):
    results = Results(is_sweep=False, entries=[entry("Heun(steps=2)", 3, 1.23456)], families=["Heun"])
    results.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md"}
    assert json.loads((tmp_path / "results.json").read_text()) == results.entries[0]
    rows = table((tmp_path / "results.md").read_text())
    assert rows[0] == ["sampler", "Heun(steps=2)"]
    assert rows[2:] == [
        ["NFE", "3"],
        ["fid/mnist@9", "1.235"],
        ["is/mnist@9", "3.25 ± 0.5"],
        ["bits_per_dim@4", "2 ± 0.12"],
        ["seconds", "1.5"],
    ]
    results.show()
    out = capsys.readouterr().out
    assert table(out) == rows
    assert out.splitlines()[-1] == "Settings: batch_size=4, kid (subsets=100, subset_size=9)."


def test_guidance_has_a_column_and_its_weights_a_picture(tmp_path, monkeypatch):
    agreements = {"agreement/mnist@9": 0.5, "agreement_error/mnist@9": 0.1, "agreement/mnist_real@4": 1.0}
    entries = []
    for sampler, weight, fid in (("DDIM", 1, 4.0), ("DDIM", 3, 1.0), ("Heun", 1, 5.0), ("Heun", 3, 2.0)):
        made = entry(sampler, 3 * weight, fid, guidance=f"ClassifierFreeGuidance(weight={weight})")
        made["settings"] = {"batch_size": 4, "guidance": made["guidance"]}
        made["metrics"] |= agreements
        entries.append(made)
    drawn = []
    picture = evaluation_report.guidance_picture
    monkeypatch.setattr(evaluation_report, "guidance_picture", lambda *args: drawn.append(args) or picture(*args))
    results = Results(is_sweep=True, guidance_weights=[1.0, 3.0, 1.0], entries=entries, families=["a", "b", "c", "d"])
    results.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "sweep.png", "guidance.png"}
    assert drawn == [
        (
            ["fid/mnist@9", "agreement/mnist@9"],
            {"DDIM": [(1.0, [4.0, 0.5]), (3.0, [1.0, 0.5])], "Heun": [(1.0, [5.0, 0.5]), (3.0, [2.0, 0.5])]},
        )
    ]
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["best"], content["best_guidance"]) == ("DDIM", "ClassifierFreeGuidance(weight=3)")
    text = (tmp_path / "results.md").read_text()
    header, _, *rows = table(text)
    assert header[:3] == ["sampler", "guidance", "NFE"]
    assert [row[:3] for row in rows[:2]] == [
        ["DDIM", "ClassifierFreeGuidance(weight=1)", "3"],
        ["DDIM (best)", "ClassifierFreeGuidance(weight=3)", "9"],
    ]
    assert "Settings: batch_size=4." in text  # what differs is in the table
    assert "Best: DDIM, ClassifierFreeGuidance(weight=3), 9 NFE." in text


def test_a_sweep_marks_the_best(tmp_path):
    entries = [entry("Heun(steps=2)", 3, 5.0), entry("Heun(steps=3)", 5, 2.0), entry("DDIM(steps=3)", 3, 4.0)]
    results = Results(is_sweep=True, entries=entries, families=["Heun", "Heun", "DDIM"])
    results.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "sweep.png"}
    assert json.loads((tmp_path / "results.json").read_text()) == {"sweep": entries, "best": "Heun(steps=3)"}
    text = (tmp_path / "results.md").read_text()
    header, _, *rows = table(text)
    assert header == ["sampler", "NFE", "fid/mnist@9", "is/mnist@9", "bits_per_dim@4", "seconds"]
    assert [row[0] for row in rows] == ["Heun(steps=2)", "Heun(steps=3) (best)", "DDIM(steps=3)"]
    assert "Best: Heun(steps=3), 5 NFE." in text


def test_a_sweep_without_fid_has_no_best(tmp_path):
    results = Results(is_sweep=True, entries=[entry("a", 1, None), entry("b", 2, None)], families=["a", "b"])
    results.write(tmp_path)
    assert results.best is None
    assert json.loads((tmp_path / "results.json").read_text())["best"] is None
    assert "best" not in (tmp_path / "results.md").read_text().lower()


def test_what_is_no_number_is_never_the_best(tmp_path):
    nan = float("nan")
    entries = [entry("a", 1, nan, not_finite=9), entry("b", 2, 4.0), entry("c", 3, nan, not_finite=1)]
    results = Results(is_sweep=True, entries=entries, families=["a", "b", "c"])
    results.write(tmp_path)
    assert results.best is entries[1]
    results.entries = [entries[0], entries[2]]
    assert results.best is None


def test_what_is_wrong_and_what_is_near_is_told(tmp_path):
    near, worst = {"smallest_ratio": 0.25, "copies": 3}, {"shown": 64, "highest": 0.6789, "asked": True}
    first = entry("a", 1, 3.0, neighbours=near, worst=worst)
    results = Results(is_sweep=True, entries=[first, entry("b", 2, 4.0, not_finite=6)], families=["a", "b"])
    header, _, *rows = table(results.markdown())
    assert header[-1] == "samples not finite"
    assert [row[-1] for row in rows] == ["0", "6"]
    assert "Copies of real images among the samples of a: 3." in results.markdown()
    assert "is 0.25; below 1/3" in results.markdown()
    assert "The 64 samples of a that the classifier is least sure of: it gives what was asked for" in results.markdown()
    assert "a probability of at most 0.68.\n\n![the samples" in results.markdown()
    worst["asked"] = False
    assert "it gives its likeliest class a probability" in results.markdown()


def test_folders_are_numbered(tmp_path):
    made = [new_folder(tmp_path / "deep" / "er", name) for name in ("x", "x", "y", "x")]
    assert [folder.name for folder in made] == ["x", "x_2", "y", "x_3"]
    assert all(folder.is_dir() for folder in made)


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_no_folder_in_a_file(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="no folder can be made there"):
        new_folder(tmp_path / place, "x")
    assert (tmp_path / "file").read_text() == "mine"
