"""`lightning restore` on a model of seconds: each task, the files it leaves, and a line for each mistake."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import QUICKSTART, QUIET, TINY, failure

from diffusion_lightning import cli
from diffusion_lightning.commands.restoration_tasks import mask_of
from diffusion_lightning.commands.usage import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restore")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "quiet.yaml").write_text(QUIET)
    overlays = [f"--config={folder / name}" for name in ("tiny.yaml", "quiet.yaml")]
    groups = ["--data.condition.clusters=2", "--data.condition.within_classes=true", "--model.network.num_classes=20"]
    cli.main(["fit", f"--config={QUICKSTART}", *overlays, *groups, f"--trainer.default_root_dir={folder}"])
    return next(folder.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(generator.integers(0, 255, (28, 28), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


FAST = ("--num=2", "--quiet", "--sampler=DPMSolverPlusPlus", "--sampler.steps=2", "--precision=32-true")


def restored(run: Path, output: Path, *args: str) -> dict[str, float]:
    cli.main(["restore", f"--ckpt_path={run}", f"--output={output}", *FAST, *args])
    return json.loads((output / "scores.json").read_text())


def levels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def test_known_pixels_are_kept_and_files_are_left(run, digits, tmp_path, capsys) -> None:
    scores = restored(
        run, tmp_path / "out", "--task=inpaint", f"--input={digits}", "--mask=bottom", f"--truth={digits}"
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a", "a.png", "b", "b.png", "calibration.png", "scores.csv", "scores.json",
    ]  # fmt: skip
    answer, truth = levels(tmp_path / "out" / "a" / "001.png"), levels(digits / "a.png")
    assert torch.equal(answer[:14], truth[:14])
    assert not torch.equal(answer[14:], truth[14:])
    # given, two answers, mean, deviation, truth
    assert levels(tmp_path / "out" / "a.png").shape == (2 + 30, 2 + 6 * 30, 3)
    assert scores["agrees"] == 1
    told = capsys.readouterr().out
    assert "2 pictures, 4 answers in" in told
    assert "MMPS, " in told
    assert "100.0% of the answers agree with the measurement" in told
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [row["picture"] for row in csv.DictReader(file)] == ["a", "b"]


def test_what_stands_in_the_missing_part_makes_no_difference(run, digits, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    picture = np.array(Image.open(digits / "a.png"))
    picture[14:] = 77
    Image.fromarray(picture).save(damaged / "a.png")
    for name, folder in (("one", digits / "a.png"), ("two", damaged)):
        restored(run, tmp_path / name, "--task=inpaint", f"--input={folder}", "--mask=bottom", "--noise=0.1")
    assert torch.equal(levels(tmp_path / "one" / "a" / "000.png"), levels(tmp_path / "two" / "a" / "000.png"))


@pytest.mark.parametrize(
    "task",
    [
        ["--task=upscale", "--factor=4"],
        ["--task=deblur", "--sigma=1.5"],
        ["--task=outpaint", "--window=[10, 12]"],
        ["--task=custom", "--operator=MotionBlur", "--operator.length=3"],
        ["--task=custom", "--operator=Clip", "--method=DPS"],
        ["--task=inpaint", "--mask=random:0.5", "--labels=[3]"],
    ],
    ids=lambda task: " ".join(task[:2]),
)
def test_every_task_measures_whole_pictures(run, digits, tmp_path, task) -> None:
    """What was measured is shown, and, where it is linear and without noise, every answer agrees with it."""
    scores = restored(run, tmp_path / "out", *task, f"--input={digits}", "--simulate=true")
    assert scores.keys() >= {"psnr", "psnr_of_mean", "ssim", "agrees", "calibration_error"}
    if "--operator=Clip" in task:
        given = levels(tmp_path / "out" / "a.png")[2:30, 2:30, 0]
        assert torch.equal(given, levels(digits / "a.png").clamp(64, 191))
    else:
        assert scores["agrees"] == 1


def test_what_is_measured_has_nothing_to_do_with_the_starts_of_the_answers(run, tmp_path) -> None:
    """Of a seed, or the noise of the measurement and the choice of its pixels would be that of the first answers."""
    Image.fromarray(np.full((28, 28), 200, dtype=np.uint8)).save(tmp_path / "even.png")
    task = ("--task=inpaint", "--mask=random:0.5", "--simulate=true", "--noise=0.2", "--seed=3")
    restored(run, tmp_path / "out", *task, f"--input={tmp_path / 'even.png'}")
    given = levels(tmp_path / "out" / "even.png")[2:30, 2:30, 0] / 127.5 - 1
    missing = given.abs() < 0.01
    assert 0.4 < missing.double().mean() < 0.6
    start = torch.randn(28, 28, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(28, 28, generator=torch.Generator().manual_seed(3))
    for one, other in ((given[~missing], start[~missing]), (missing.float(), uniform), (missing.float(), start.abs())):
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 0.15  # of independent numbers, 0 ± 0.05


def test_a_small_picture_is_enlarged(run, tmp_path) -> None:
    Image.fromarray(np.full((7, 7), 200, dtype=np.uint8)).save(tmp_path / "s.png")
    restored(run, tmp_path / "out", "--task=upscale", "--factor=4", f"--input={tmp_path / 's.png'}")
    answer = levels(tmp_path / "out" / "s" / "000.png").double()
    assert answer.shape == (28, 28)
    # up to what 8 bits and their limits take away
    assert answer.reshape(7, 4, 7, 4).mean((1, 3)).median().item() == pytest.approx(200, abs=12)


def test_colour_is_turned_to_grey_with_a_word(run, tmp_path, capsys) -> None:
    Image.fromarray(np.full((28, 28, 3), 90, dtype=np.uint8)).save(tmp_path / "c.png")
    restored(run, tmp_path / "out", "--task=inpaint", f"--input={tmp_path / 'c.png'}")
    assert "input: 1 of 1 pictures turned from colour to grey" in capsys.readouterr().err


def test_masks() -> None:
    assert mask_of("left", (4, 6), 0).sum(0).tolist() == [4, 4, 4, 0, 0, 0]
    assert mask_of("bottom", (4, 6), 0).sum(1).tolist() == [0, 0, 6, 6]
    assert mask_of("center", (8, 8), 0).sum().item() == 16
    share = mask_of("random:0.3", (64, 64), 1).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.03)
    for bad in ("random:2", "random:x", "middle", "left.png"):
        with pytest.raises(ValueError, match="mask="):
            mask_of(bad, (4, 4), 0)


def test_white_in_a_masks_picture_is_filled_in(tmp_path) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[0] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert mask_of(str(tmp_path / "mask.png"), (4, 4), 0).sum(1).tolist() == [4, 0, 0, 0]
    with pytest.raises(UsageError, match=r"mask: mask has 4 × 4 pixels: must have 5 × 5, as the model's pictures"):
        mask_of(str(tmp_path / "mask.png"), (5, 5), 0)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(UsageError, match="nothing is to be filled in"):
        mask_of(str(tmp_path / "none.png"), (4, 4), 0)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--task=inpaint", "--method=Magic"], "method='Magic': must be one of MMPS, PGDM, DPS"),
        (["--task=inpaint", "--noise=-1"], "noise=-1.0: must be zero (no noise) or above"),
        (["--task=inpaint", "--num=0"], "num=0: must be at least 1"),
        (["--task=inpaint", "--mask=nowhere.png"], "mask='nowhere.png': there is no such file: must be left, right"),
        (["--task=inpaint", "--labels=[3, 4, 5]"], "3 for 2 pictures: must be one for each, or one for all"),
        (["--task=colour"], "task=colour: the model draws grey pictures"),
        (["--task=upscale", "--factor=3"], "factor=3: must be at least 2 and divide"),
        (["--task=upscale"], "a has 28 × 28 pixels: must have 14 × 14, the model's 28 × 28 over --factor 2; whole"),
        (["--task=colour", "--mask=left"], "mask: goes with --task inpaint, and does nothing for colour"),
        (["--task=inpaint", "--factor=4"], "factor: goes with --task upscale, and does nothing for inpaint"),
        (["--task=inpaint", "--scale=0"], "scale=0: must be at least 1"),
        (
            ["--task=inpaint", "--guidance=ClassifierFreeGuidance", "--guidance.weight=2"],
            "guidance: is towards a class",
        ),
        (["--task=custom"], "operator: --task custom needs one"),
        (
            ["--task=deblur", "--operator=MotionBlur"],
            "operator: goes with --task custom, and does nothing for deblur: leave it out",
        ),
        (["--task=custom", "--operator=Clip"], "operator: Clip is not linear, and MMPS needs a linear one"),
        (["--task=inpaint", "--method=RePaint"], "sampler: RePaint draws by itself: leave it out"),
        (["--task=inpaint", "--input=nowhere"], "input='nowhere': there is no such file or folder"),
        (["--task=inpaint", "--truth=EMPTY"], "holds no pictures"),
        (["--task=inpaint", "--simulate=true", "--truth=EMPTY"], "truth: with --simulate"),
    ],
)
def test_each_mistake_is_a_line_and_nothing_is_written(run, digits, tmp_path, capsys, args, said) -> None:
    (tmp_path / "empty").mkdir()
    given = [arg.replace("EMPTY", str(tmp_path / "empty")) for arg in args]
    if not any(arg.startswith("--input") for arg in given):
        given.append(f"--input={digits}")
    line = failure(capsys, "restore", f"--ckpt_path={run}", f"--output={tmp_path / 'out'}", *FAST, *given)
    assert said in line
    assert not any((tmp_path / "out").rglob("*.png"))


def test_a_picture_in_the_place_of_a_file_of_scores_is_told(run, digits, tmp_path, capsys) -> None:
    picture = tmp_path / "calibration.png"
    picture.write_bytes((digits / "a.png").read_bytes())
    given = ("restore", f"--ckpt_path={run}", f"--output={tmp_path / 'out'}", "--task=inpaint", f"--input={picture}")
    assert "rename the picture of that name" in failure(capsys, *given, "--simulate=true", *FAST)


def test_a_broken_picture_and_a_used_folder_are_told(run, digits, tmp_path, capsys) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"no picture")
    given = ("restore", f"--ckpt_path={run}", "--task=inpaint", *FAST)
    line = failure(capsys, *given, f"--input={tmp_path / 'broken'}", f"--output={tmp_path / 'out'}")
    assert "x.png': is no picture that can be read" in line
    line = failure(capsys, *given, f"--input={digits}", f"--output={tmp_path / 'broken'}")
    assert "this folder is not empty: give another one" in line
    assert (tmp_path / "broken" / "x.png").read_bytes() == b"no picture"


def test_the_seed_decides_the_answers_and_a_class_is_told(run, digits, tmp_path) -> None:
    """The same seed, the same answers, also of the groups that a class has; another, or a class, makes others."""
    given = ["--task=inpaint", f"--input={digits}", "--mask=bottom"]
    for name, more in (("a", []), ("b", []), ("c", ["--seed=1"]), ("d", ["--labels=[3]"]), ("e", ["--labels=[3]"])):
        restored(run, tmp_path / name, *given, *more)
    a, b, c, d = (levels(tmp_path / name / "a" / "000.png") for name in "abcd")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, d)
    for name in ("a", "b"):
        answers = [levels(tmp_path / run / name / f"{i:03d}.png") for run in "de" for i in range(2)]
        assert torch.equal(answers[0], answers[2])
        assert torch.equal(answers[1], answers[3])
