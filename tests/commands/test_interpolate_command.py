"""`lightning interpolate` on a model of seconds: what it leaves, and a line for each mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import QUICKSTART, QUIET, TINY, failure

from diffusion_lightning import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interpolate")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "quiet.yaml").write_text(QUIET)
    overlays = [f"--config={folder / name}" for name in ("tiny.yaml", "quiet.yaml")]
    cli.main(["fit", f"--config={QUICKSTART}", *overlays, f"--trainer.default_root_dir={folder}"])
    return next(folder.rglob("last.ckpt"))


FAST = ("--frames=4", "--labels=3", "--quiet")


def grey(path: Path, seed: int, size: int = 28) -> Path:
    levels = np.random.default_rng(seed).integers(60, 200, (size, size), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def test_the_ends_are_the_pictures(run, tmp_path, capsys) -> None:
    first, last = grey(tmp_path / "a.png", 0), grey(tmp_path / "b.png", 1)
    output = tmp_path / "out" / "way.gif"
    cli.main(["interpolate", *FAST, f"--ckpt_path={run}", f"--from={first}", f"--to={last}", f"--output={output}"])
    strip = torch.from_numpy(np.array(Image.open(output.with_suffix(".png"))))[..., 0].double()
    assert strip.shape == (2 + 30, 2 + 4 * 30)
    for left, path in ((2, first), (2 + 3 * 30, last)):
        given = torch.from_numpy(np.array(Image.open(path))).double()
        assert (strip[2:30, left : left + 28] - given).abs().max() <= 4  # of 255, at the default tolerance
    assert Image.open(output).n_frames == 4 + 2  # there and back
    assert "4 frames in" in capsys.readouterr().out


def test_each_picture_may_have_a_class_of_its_own(run, tmp_path, capsys) -> None:
    first, last = grey(tmp_path / "a.png", 0), grey(tmp_path / "b.png", 1)
    strips = []
    for labels in ("3,3", "3,8", "8,3"):
        args = ["--frames=3", f"--labels={labels}", "--quiet", f"--output={tmp_path / 'way.gif'}"]
        cli.main(["interpolate", *args, f"--ckpt_path={run}", f"--from={first}", f"--to={last}"])
        strip = torch.from_numpy(np.array(Image.open(tmp_path / "way.png"))).double()
        assert (strip[2:30, 2:30, 0] - torch.from_numpy(np.array(Image.open(first))).double()).abs().max() <= 4
        strips.append(strip[:, 32:60])
    alike, there, back = strips
    assert (alike - there).abs().max() > 0
    assert (there - back).abs().max() > 0


def test_ends_that_are_not_named_are_drawn_by_the_seed(run, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cli.main(["interpolate", *FAST, f"--ckpt_path={run}", f"--seed={seed}", f"--output={tmp_path / name}.gif"])
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_colour_is_turned_to_grey_with_a_word(run, tmp_path, capsys) -> None:
    grey(tmp_path / "a.png", 0)
    Image.open(tmp_path / "a.png").convert("RGB").save(tmp_path / "colour.png")
    args = [*FAST, f"--ckpt_path={run}", "--tolerance=1e-2", f"--from={tmp_path / 'colour.png'}", "--scale=2"]
    cli.main(["interpolate", *args, f"--output={tmp_path / 'way.gif'}"])
    assert "from: 1 of 1 pictures turned from colour to grey" in capsys.readouterr().err
    assert Image.open(tmp_path / "way.gif").size == (56, 56)
    assert Image.open(tmp_path / "way.png").size == (2 * (2 + 4 * 30), 2 * 32)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--frames=1"], "frames=1: must be at least 2"),
        (["--output=x.png"], "output='x.png': must end in .gif"),
        (["--from=nowhere.png"], "from='nowhere.png': there is no such file"),
        (["--to=FOLDER"], "is a folder: give a picture"),
        (["--from=SMALL"], "from: small has 8 × 8 pixels: must have 28 × 28, as the model's"),
        (["--labels=12"], "12 is no class of the checkpoint"),
        (["--labels=1,2,3"], "labels=[1, 2, 3]: must be one for both pictures, or one for each"),
        (["--tolerance=0"], "tolerance=0.0: must be above 0"),
        (["--batch_size=0"], "batch_size=0: must be at least 1"),
        (["--scale=0"], "scale=0: must be at least 1"),
        (["--output=FOLDER/a.gif/b.gif"], "no folder can be made there"),
        (["--output=FOLDER/taken.gif"], "taken.png': is a folder"),
    ],
)
def test_each_mistake_is_a_line(run, tmp_path, capsys, monkeypatch, args, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "a.gif").touch()
    small = grey(tmp_path / "small.png", 0, size=8)
    given = [arg.replace("FOLDER", str(tmp_path)).replace("SMALL", str(small)) for arg in args]
    assert said in failure(capsys, "interpolate", f"--ckpt_path={run}", "--quiet", *given)
    assert [path.name for path in tmp_path.glob("*.gif")] == ["a.gif"]


def test_a_model_that_was_never_without_its_class_must_be_told_it(run, tmp_path, capsys) -> None:
    checkpoint = torch.load(run, weights_only=True)
    checkpoint["hyper_parameters"]["condition_dropout"] = 0.0
    torch.save(checkpoint, tmp_path / "told.ckpt")
    args = [f"--ckpt_path={tmp_path / 'told.ckpt'}", "--frames=2", "--quiet", f"--output={tmp_path / 'way.gif'}"]
    assert failure(capsys, "interpolate", *args) == (
        "labels: the model was never without a class: give one for both pictures, or one for each"
    )
    cli.main(["interpolate", *args, "--labels=3", "--tolerance=1e-2"])
    assert (tmp_path / "way.gif").is_file()
