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


FAST = ("--frames=4", "--label=3", "--quiet")


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


def test_ends_that_are_not_named_are_drawn_by_the_seed(run, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cli.main(["interpolate", *FAST, f"--ckpt_path={run}", f"--seed={seed}", f"--output={tmp_path / name}.gif"])
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--frames=1"], "frames=1: must be at least 2"),
        (["--output=x.png"], "output='x.png': must end in .gif"),
        (["--from=nowhere.png"], "from='nowhere.png': there is no such file"),
        (["--to=FOLDER"], "is a folder: give a picture"),
        (["--from=SMALL"], "from: small has 8 × 8 pixels: must have 28 × 28, as the model's"),
        (["--label=12"], "12 is no class of the checkpoint"),
        (["--tolerance=0"], "rtol=0.0: must be positive"),
    ],
)
def test_each_mistake_is_a_line(run, tmp_path, capsys, monkeypatch, args, said) -> None:
    monkeypatch.chdir(tmp_path)
    small = grey(tmp_path / "small.png", 0, size=8)
    given = [arg.replace("FOLDER", str(tmp_path)).replace("SMALL", str(small)) for arg in args]
    assert said in failure(capsys, "interpolate", f"--ckpt_path={run}", "--quiet", *given)
    assert not list(tmp_path.glob("*.gif"))
