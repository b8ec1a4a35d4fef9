"""`lightning evaluate`: the figures are those of the functions it calls, and every mistake is told before the work."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
import torch
import yaml
from PIL import Image

from diffusion_lightning import (
    DDIM,
    MLP,
    VPSDE,
    EmbeddedMNIST,
    Heun,
    NoisePrediction,
    PredictorCorrector,
    ProbabilityFlowODE,
    Reference,
    ScoreModule,
    UNet,
    bits_per_dim,
    cli,
    evaluate,
)
from diffusion_lightning.commands.sweep import label as label_of
from diffusion_lightning.images import to_uint8
from diffusion_lightning.metrics.agreement import Agreement, least_sure, tally
from diffusion_lightning.metrics.digits import JudgedDigitFeatures
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.randomness import Stream, derive_seed, draw_some
from diffusion_lightning.training.checkpoint_file import KEY
from diffusion_lightning.training.trained import DrawsSamples


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder with a checkpoint of a tiny conditional model, and its config; and one of points."""
    from lightning.pytorch import Trainer

    from diffusion_lightning import KarrasPreconditioning, KarrasSDE, Points

    run = tmp_path_factory.mktemp("trained") / "runs" / "tiny" / "version_0"
    torch.manual_seed(0)
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    module = ScoreModule(network, KarrasSDE(), KarrasPreconditioning(), sampler=Heun(steps=2), ema_decay=0.5)
    points = ScoreModule(MLP(), VPSDE(), NoisePrediction())
    for name, model, data in (("last", module, EmbeddedMNIST(batch_size=8)), ("points", points, Points())):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(accelerator="cpu", max_steps=3, num_sanity_val_steps=0, limit_val_batches=0, **quiet)
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(run / "checkpoints" / f"{name}.ckpt")
    recipe = {"class_path": "diffusion_lightning.EmbeddedMNIST", "init_args": {"batch_size": 8}}
    (run / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "data": recipe}))
    return run


@pytest.fixture(autouse=True)
def cached(monkeypatch, tmp_path_factory):
    """The features of the embedded digits are computed once for all tests here."""
    folder = tmp_path_factory.getbasetemp() / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """This process works in an empty folder, with a copy of the run."""
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LAST = ("--ckpt_path", "run/checkpoints/last.ckpt", "--device", "cpu", "--precision", "32-true", "--quiet")


def results(capsys, *options: str) -> SimpleNamespace:
    """What the command wrote and said."""
    cli.main(["evaluate", *LAST, *options])
    out = capsys.readouterr().out
    folder = Path(out.strip().splitlines()[-1].removeprefix("Everything is in "))
    found = json.loads((folder / "results.json").read_text())
    return SimpleNamespace(out=out, folder=folder, found=found, files={path.name for path in folder.iterdir()})


def draw(sampler=None, num: int = 12, batch_size: int = 256, seed: int = 0) -> torch.Tensor:
    """The samples that the command judges, as 8-bit images."""
    module = ScoreModule.load_from_checkpoint("run/checkpoints/last.ckpt")
    batches = []
    for index, first in enumerate(range(0, num, batch_size)):
        size = min(batch_size, num - first)
        generator = torch.Generator().manual_seed(derive_seed(seed, index, Stream.EVALUATION))
        labels = torch.arange(first, first + size) % 10
        batches.append(to_uint8(module.sample(sampler, size, labels, generator)))
    return torch.cat(batches)


def test_everything_about_a_checkpoint_of_a_run(here, capsys):
    done = results(capsys, "--num", "12", "--seed", "3", "--batch_size", "5", "--bits_per_dim", "4")
    assert done.folder == Path("run/evaluations/step=3_Heun-steps=2_num=12_seed=3_digits_EmbeddedMNIST")
    assert done.files == {"results.json", "results.md", "neighbours.png", "worst.png"}

    network, data = JudgedDigitFeatures(), EmbeddedMNIST()
    data.setup()
    features = network(draw(num=12, batch_size=5, seed=3))
    expected = evaluate(
        features,
        Reference.of_images("x", data.fid_reference(), network, "x"),
        ("fid", "kid", "is", "precision_recall", "agreement"),
        logits=network.logits(features),
        labels=torch.arange(12) % 10,
        seed=3,
    )
    assert sum(map(len, data.fid_reference())) == 9000
    metrics = done.found["metrics"]
    for name, value in expected.values.items():
        assert metrics.pop(f"{name}/digits@12") == pytest.approx(value, rel=1e-4, abs=1e-6), name
    module = ScoreModule.load_from_checkpoint("run/checkpoints/last.ckpt").eval()
    images, labels = data.held_out_images[draw_some(4, 1000, seed=3)]
    with module.ema_weights():
        generator = torch.Generator().manual_seed(3)
        bits = bits_per_dim(module.denoiser, images, generator=generator, labels=labels).double()
    assert metrics.pop("bits_per_dim@4") == pytest.approx(bits.mean().item(), abs=1e-3)
    assert metrics.pop("bits_per_dim_error@4") == pytest.approx(bits.std().item() / 2, abs=1e-3)
    held_out = data.held_out_images
    of_real = Agreement.of(tally(network.logits(network(held_out.images)), held_out.labels), asked=True)
    for name, value in (of_real.shares | of_real.errors).items():
        assert metrics.pop(f"{name}/digits_real@1000") == pytest.approx(value), name
    assert metrics == {}

    found = done.found
    assert {name: found[name] for name in ("sampler", "nfe", "num", "seed", "precision", "feature", "reference")} == {
        "sampler": "Heun(steps=2)",
        "nfe": 3,
        "num": 12,
        "seed": 3,
        "precision": "32-true",
        "feature": "digits",
        "reference": "EmbeddedMNIST",
    }
    assert (found["checkpoint"], found["step"], found["epoch"]) == ("run/checkpoints/last.ckpt", 3, 0)
    assert found["settings"]["kid"] == {"subsets": 100, "subset_size": 12}
    assert found["versions"]["torch"] == torch.__version__
    assert found["seconds"] > 0
    assert found["settings"]["bits_per_dim"] == {"held_out": 4, "of": 1000, "seed": 3}
    assert "bits_per_dim (held_out=4, of=1000, seed=3)" in done.out
    assert set(found["neighbours"]) == {"smallest_ratio", "copies", "usual_of", "features", "pixels"}
    assert found["neighbours"]["usual_of"] == 200
    assert found["settings"]["agreement"] == {"held_out": 1000, "of": 1000, "seed": 3}
    sure = least_sure(network.logits(features), torch.arange(12) % 10)[1]
    assert found["worst"] == {"shown": 12, "highest": pytest.approx(sure.max().item(), rel=1e-3), "asked": True}
    assert "| fid/digits@12 " in done.out
    assert "| sampler " in done.out
    assert done.out.split("Everything")[0].strip() in (done.folder / "results.md").read_text()
    with Image.open(done.folder / "neighbours.png") as picture:
        assert picture.size[0] > 300
    with Image.open(done.folder / "worst.png") as picture:
        assert picture.size == (800, 320)  # two rows of images, each with a caption, and a title


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The classes that samples are drawn of, in order."""
    classes: list[int] = []
    original = DrawsSamples.sample

    def sample(self, sampler, num, **kwargs):
        classes.extend(kwargs["condition"]["labels"].tolist())
        return original(self, sampler, num, **kwargs)

    monkeypatch.setattr(DrawsSamples, "sample", sample)
    return classes


def test_nothing_is_read_where_the_model_has_other_classes_than_the_classifier(here, capsys):
    path = Path("run/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[KEY]["class_names"] = list("abcdefghij")
    torch.save(checkpoint, path)
    done = results(capsys, "--num", "4", "--metrics", "[fid, is]", "--neighbours", "0")
    assert done.files == {"results.json", "results.md"}
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *LAST, "--num", "4", "--metrics", "[agreement]"])
    line = (
        "metrics: agreement needs features of a classifier of the model's own classes, as mnist (0 1 2 3 4 5 6 7 8 9), "
        "digits (0 1 2 3 4 5 6 7 8 9)"
    )
    assert f"lightning: error: {line}: leave it out" in capsys.readouterr().err


def test_agreement_alone_needs_no_data(here, capsys):
    shutil.move("run/checkpoints/last.ckpt", "lone.ckpt")
    found = results(capsys, "--ckpt_path", "lone.ckpt", "--num", "4", "--metrics", "[agreement]")
    names = {f"{name}/digits@4" for name in ("agreement", "agreement_error", "legible", "legible_error")}
    assert set(found.found["metrics"]) == names
    assert found.files == {"results.json", "results.md", "worst.png"}


def rewrite(path: Path, counts: list[int] | None) -> None:
    """Let a checkpoint have learnt of other data; of none, as those of earlier versions."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[KEY]["class_counts"] = counts
    if counts is None:
        del checkpoint[KEY]["class_counts"]
    torch.save(checkpoint, path)


def test_classes_are_drawn_in_the_shares_of_the_training_data(here, capsys, drawn):
    options = ("--num", "20", "--metrics", "[is]", "--reference", "r", "--neighbours", "0")
    (here / "r").mkdir()
    path = Path("run/checkpoints/last.ckpt")
    rewrite(path, [11, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    found = results(capsys, *options).found
    assert [drawn.count(digit) for digit in range(10)] == [11] + 9 * [1]
    assert found["settings"]["classes"] == "in the training data's shares"

    drawn.clear()
    found = results(capsys, *options[:4], "--data", "EmbeddedMNIST", "--neighbours", "0").found
    assert drawn == [*range(10)] * 2
    assert found["settings"]["classes"] == "in the shares of EmbeddedMNIST"

    rewrite(path, None)
    drawn.clear()
    found = results(capsys, "--num", "20", "--metrics", "[fid]", "--neighbours", "0").found
    assert drawn == [*range(10)] * 2
    assert found["settings"]["classes"] == "in the shares of EmbeddedMNIST"  # the run's, which are read anyway


def test_a_checkpoint_that_does_not_know_its_classes_shares_says_so(here, capsys, drawn):
    rewrite(Path("run/checkpoints/last.ckpt"), None)
    shutil.move("run/config.yaml", "elsewhere.yaml")
    args = ["evaluate", *LAST, "--num", "12", "--metrics", "[is]", "--neighbours", "0"]
    with pytest.warns(UserWarning, match=r"does not say how often .* come in turn; give --data"):
        cli.main(args)
    assert drawn == [*range(10), 0, 1]
    assert "classes=in turn" in capsys.readouterr().out


def test_nothing_is_measured_of_samples_that_are_not_finite(here, capsys, monkeypatch):
    original = DrawsSamples.sample

    def sample(*args, **kwargs):
        samples = original(*args, **kwargs)
        samples[0] = torch.inf
        return samples

    monkeypatch.setattr(DrawsSamples, "sample", sample)
    with pytest.warns(UserWarning, match=r"3 of 12 samples are not finite .*; the values of Heun\(steps=2\) are nan"):
        done = results(capsys, "--num", "12", "--batch_size", "5")
    assert done.found["not_finite"] == 3
    names = ("fid", "kid", "kid_std", "is", "precision", "recall")
    names += ("agreement", "agreement_error", "legible", "legible_error")
    of_samples = {name: value for name, value in done.found["metrics"].items() if "_real@" not in name}
    assert set(of_samples) == {f"{name}/digits@12" for name in names}
    assert all(math.isnan(value) for value in of_samples.values())
    assert re.search(r"\| fid/digits@12 +\| nan", done.out)


def test_results_are_never_overwritten(here, capsys):
    options = ("--num", "3", "--metrics", "[is]")
    first, second, other = (results(capsys, *options, *more) for more in ((), (), ("--seed", "1")))
    assert second.folder.name == first.folder.name + "_2"
    assert "seed=1" in other.folder.name
    assert first.files == {"results.json", "results.md"}
    assert first.found["metrics"] == second.found["metrics"] != other.found["metrics"]


def test_a_checkpoint_outside_of_a_run_and_a_folder_of_ones_own(here, capsys):
    shutil.move("run/checkpoints/last.ckpt", "lone.ckpt")
    options = ("--ckpt_path", "lone.ckpt", "--data", "EmbeddedMNIST", "--num", "3", "--metrics", "[fid]")
    assert results(capsys, *options).folder.parent == Path("evaluations")
    assert results(capsys, *options, "--output", "mine/here").folder.parent == Path("mine/here")


def test_a_sweep_from_the_same_starts(here, capsys):
    done = results(
        capsys,
        *("--num", "6", "--metrics", "[fid, is]", "--neighbours", "2", "--sweep.steps", "[2, 3]"),
        *("--sweep.samplers", "[Heun, {class_path: DPMSolverPlusPlus, init_args: {order: 1}}, EulerMaruyama]"),
    )
    assert done.files == {"results.json", "results.md", "neighbours.png", "sweep.png"}
    entries = done.found["sweep"]
    assert [(entry["sampler"], entry["nfe"]) for entry in entries] == [
        ("Heun(steps=2)", 3),
        ("Heun(steps=3)", 5),
        ("DPMSolverPlusPlus(steps=2, order=1)", 2),
        ("DPMSolverPlusPlus(steps=3, order=1)", 3),
        ("EulerMaruyama(steps=2)", 2),
        ("EulerMaruyama(steps=3)", 3),
    ]
    fids = [entry["metrics"]["fid/digits@6"] for entry in entries]
    assert len(set(fids)) == 6
    best = entries[fids.index(min(fids))]
    assert done.found["best"] == best["sampler"]
    assert "neighbours" in best
    (line,) = (line for line in done.out.splitlines() if "(best)" in line)
    assert best["sampler"] in line

    # what comes before in a sweep changes nothing: each is as if it were alone
    alone = results(capsys, "--num", "6", "--metrics", "[fid, is]", "--sampler", "Heun", "--sampler.steps", "3")
    assert alone.found["metrics"] == entries[1]["metrics"]


def test_several_seeds_and_the_distance_of_infinitely_many_samples(here, capsys):
    options = (
        "--num",
        "516",
        "--metrics",
        "[fid, agreement]",
        "--neighbours",
        "0",
        "--seed",
        "4",
        "--batch_size",
        "516",
    )
    done = results(capsys, *options, "--seeds", "2", "--extrapolate", "true")
    assert "_num=516_seeds=4-5_digits_" in done.folder.name
    network, data = JudgedDigitFeatures(), EmbeddedMNIST()
    reference = Reference.of_images("x", data.fid_reference(), network, "x")
    each = []
    for seed in (4, 5):
        features = network(draw(num=516, batch_size=516, seed=seed))
        each.append(
            evaluate(
                features,
                reference,
                ["fid", "agreement"],
                logits=network.logits(features),
                labels=torch.arange(516) % 10,
                extrapolate=True,
                seed=seed,
            ).values
        )
    for found, expected in zip(done.found["by_seed"], each, strict=True):
        assert found == {f"{name}/digits@516": pytest.approx(value, rel=1e-3) for name, value in expected.items()}
    metrics = done.found["metrics"]
    of_samples = {name for name in metrics if "_real@" not in name}
    names = ("fid", "fid_infinity", "agreement", "legible")
    assert of_samples == {f"{name}{spread}/digits@516" for name in names for spread in ("", "_std")}
    for name in names:
        first, second = (values[name] for values in each)
        assert metrics[f"{name}/digits@516"] == pytest.approx((first + second) / 2, rel=1e-3)
        assert metrics[f"{name}_std/digits@516"] == pytest.approx(abs(first - second) / 2**0.5, rel=0.05, abs=1e-6)
    assert done.found["seeds"] == [4, 5]
    assert "Settings: seeds=2, " in done.out
    shown = f"{metrics['fid/digits@516']:.4g} ± {metrics['fid_std/digits@516']:.2g}"
    assert shown in done.out
    assert "of each of the seeds 4 to 5, mean ± standard" in (done.folder / "results.md").read_text()


def test_a_sweep_over_the_steps_of_the_checkpoints_sampler(here, capsys):
    done = results(capsys, "--num", "3", "--metrics", "[is]", "--sweep.steps", "[1, 2, 2]")
    assert [entry["sampler"] for entry in done.found["sweep"]] == ["Heun(steps=1)", "Heun(steps=2)"]
    assert done.found["best"] is None
    assert done.files == {"results.json", "results.md"}


def test_samplers_are_compared_with_their_own_steps(here, capsys):
    samplers = "[Heun, {class_path: DDIM, init_args: {steps: 2, eta: 0.5}}]"
    done = results(capsys, "--num", "3", "--metrics", "[is]", "--sweep.samplers", samplers)
    assert [entry["sampler"] for entry in done.found["sweep"]] == ["Heun(steps=18)", "DDIM(steps=2, eta=0.5)"]


def test_what_was_found_before_an_interruption_is_kept(here, capsys, monkeypatch):
    from diffusion_lightning.commands import judging

    original = judging.judge

    def judge(subject, way, *compared_with):
        if way.sampler.steps == 3:
            raise KeyboardInterrupt
        return original(subject, way, *compared_with)

    monkeypatch.setattr(judging, "judge", judge)
    common = ["evaluate", *LAST, "--num", "3", "--metrics", "[is]"]
    with pytest.raises(SystemExit):
        cli.main([*common, "--sweep.steps", "[2, 3]"])
    (folder,) = Path("run/evaluations").iterdir()
    assert len(json.loads((folder / "results.json").read_text())["sweep"]) == 1
    with pytest.raises(SystemExit):
        cli.main([*common, "--sampler", "Heun", "--sampler.steps", "3"])
    assert list(Path("run/evaluations").iterdir()) == [folder]  # nothing found, nothing left


def test_an_exported_reference_gives_the_same_distance(here, capsys):
    common = ("--num", "6", "--neighbours", "0")
    images = results(capsys, *common, "--export_reference", "stats.npz")
    moments = results(capsys, *common, "--reference", "stats.npz")
    assert moments.found["reference"] == "stats.npz"
    assert moments.found["feature"] == "digits"
    fid = "fid/digits@6"
    assert moments.found["metrics"][fid] == pytest.approx(images.found["metrics"][fid], rel=1e-6)
    read = {"agreement", "agreement_error", "legible", "legible_error"}
    assert {name.split("/")[0] for name in moments.found["metrics"]} == {"fid", "is", *read}
    with np.load("stats.npz") as arrays:
        assert (arrays["mu"].shape, arrays["sigma"].shape) == ((128,), (128, 128))


def test_features_of_others_give_all_metrics(here, capsys):
    real = DigitFeatures()(EmbeddedMNIST().held_out_images[list(range(50))][0])
    np.savez("score_sde.npz", pool_3=real.numpy(), logits=np.zeros((50, 10)))
    found = results(capsys, "--num", "6", "--reference", "score_sde.npz").found
    read = {"agreement", "agreement_error", "legible", "legible_error"}
    names = {name.split("/")[0] for name in found["metrics"]}
    assert names == {"fid", "kid", "kid_std", "is", "precision", "recall", *read}
    features = DigitFeatures()(draw(num=6))
    expected = evaluate(features, Reference.read(Path("score_sde.npz")), ["fid"]).values["fid"]
    assert found["metrics"]["fid/mnist@6"] == pytest.approx(expected, rel=1e-4)


def test_samples_in_a_folder_as_reference_find_themselves(here, capsys):
    """The very samples as pictures: no distance, full precision and recall, and each its own neighbour."""
    for index, image in enumerate(draw(num=8)):
        path = Path(f"pictures/{index % 2}/{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    found = results(capsys, "--num", "8", "--reference", "pictures").found
    assert found["reference"] == "pictures"
    assert found["metrics"]["fid/digits@8"] == pytest.approx(0, abs=1e-2)
    assert found["metrics"]["precision/digits@8"] == found["metrics"]["recall/digits@8"] == 1
    assert found["neighbours"]["pixels"]["closest_shown"] == 0
    assert found["neighbours"]["features"]["closest_shown"] == pytest.approx(0, abs=1e-4)
    assert found["neighbours"]["copies"] == 8


def test_progress_unless_told_not_to(here, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = ["evaluate", *LAST[:-1], "--num", "4", "--batch_size", "2", "--neighbours", "2"]
    cli.main(common)
    shown = capsys.readouterr().err
    for bar in ("reference", "Heun(steps=2)", "metrics", "nearest in pixels"):
        assert bar in shown
    cli.main([*common, "--quiet"])
    assert capsys.readouterr().err == ""


def test_samples_that_are_not_finite_are_told_of(here, capsys, monkeypatch):
    original = DrawsSamples.sample

    def sample(self, *args, **kwargs):
        x = original(self, *args, **kwargs)
        x[1, 0, 3, 3] = torch.nan
        return x

    monkeypatch.setattr(DrawsSamples, "sample", sample)
    done = results(capsys, "--num", "4", "--metrics", "[is]")
    assert done.found["not_finite"] == 1
    assert "samples not finite" in done.out


def test_a_terminal_gets_a_framed_table(here, capsys, monkeypatch):
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "120")
    cli.main(["evaluate", *LAST, "--num", "3", "--metrics", "[is]"])
    out = capsys.readouterr().out
    assert "───" in out
    assert "is/digits@3" in out


@pytest.mark.parametrize(
    ("sampler", "label"),
    [
        (Heun(steps=7), "Heun(steps=7)"),
        (DDIM(5, eta=1.0), "DDIM(steps=5, eta=1.0)"),
        (PredictorCorrector(9, corrector=None), "PredictorCorrector(steps=9, corrector=None)"),
        (ProbabilityFlowODE(rtol=1e-3), "ProbabilityFlowODE(rtol=0.001)"),
        (ProbabilityFlowODE("rk4", steps=4), "ProbabilityFlowODE(method=rk4, steps=4)"),
        (ProbabilityFlowODE(), "ProbabilityFlowODE"),
    ],
)
def test_what_a_sampler_is_called(sampler, label):
    assert label_of(sampler) == label


# ---- mistakes

MISTAKES = {
    "one sample": (("--num", "1"), "num=1: must be at least 2"),
    "empty batches": (("--batch_size", "0"), "batch_size=0: must be at least 1"),
    "no bits": (("--bits_per_dim", "0"), "bits_per_dim=0: must be at least 1"),
    "negative neighbours": (("--neighbours", "-1"), "neighbours=-1: must be at least 0"),
    "no seed": (("--seed", "-1"), "seed=-1: must be from 0"),
    "no metrics": (("--metrics", "[]"), "metrics=[]: name at least one"),
    "another metric": (("--metrics", "[fdi]"), "fdi"),
    "another sampler": (("--sampler", "Hen"), "Hen (did you mean Heun?)"),
    "no fitting sampler": (("--sampler", "Heun", "--sampler.t_min", "100"), "sampler: Heun: t_min=100.0: must be in"),
    "no fitting sampler in a sweep": (
        ("--sweep.samplers", "[Heun, {class_path: AnnealedLangevin, init_args: {step_size: 1.0}}]"),
        "sweep.samplers: AnnealedLangevin: step_size=1.0: Langevin dynamics is unstable",
    ),
    "sampler without steps": (
        ("--sweep.samplers", "[ProbabilityFlowODE]", "--sweep.steps", "[4]"),
        "sweep.samplers: ProbabilityFlowODE takes no number of steps",
    ),
    "sampler twice": (("--sampler", "Heun", "--sweep.samplers", "[Heun]"), "sampler: sweep.samplers are given too"),
    "no samplers": (("--sweep.samplers", "[]"), "sweep.samplers=[]: name at least one"),
    "no steps": (("--sweep.steps", "[]"), "sweep.steps=[]: name at least one"),
    "zero steps": (("--sweep.steps", "[4, 0]"), "sweep.steps=[4, 0]: must be at least 1 each"),
    "points": (("--ckpt_path", "run/checkpoints/points.ckpt"), "is of points: evaluation is of images"),
    "no checkpoint": (("--ckpt_path", "no.ckpt"), "ckpt_path='no.ckpt': there is no such file"),
    "no data": (("--ckpt_path", "lone.ckpt"), "data: the checkpoint lies in no run whose config.yaml names its"),
    "no data for bits": (
        ("--ckpt_path", "lone.ckpt", "--metrics", "[is]", "--bits_per_dim", "3"),
        "data: the checkpoint lies in no run",
    ),
    "broken config": (("--ckpt_path", "broken/checkpoints/last.ckpt"), "names none that can be made"),
    "data of points": (("--data", "Points"), "data=Points: is not of images: give EmbeddedMNIST"),
    "data of another shape": (
        ("--data", "CIFAR10"),
        "data=CIFAR10: has images of shape (3, 32, 32): must be (1, 28, 28)",
    ),
    "data and reference": (("--data", "EmbeddedMNIST", "--reference", "x.npz"), "reference='x.npz': --data is given"),
    "no reference": (("--reference", "no.npz"), "reference='no.npz': there is no such file"),
    "reference of a kind": (("--reference", "config.yaml"), "reference='config.yaml': must be a folder of pictures"),
    "reference damaged": (("--reference", "damaged.npz"), "reference='damaged.npz': is damaged"),
    "reference of other features": (
        ("--reference", "small.npz"),
        "reference='small.npz': is of 7 features, which none of the known networks has",
    ),
    "reference that does not fit": (
        ("--reference", "small.npz", "--feature", "mnist"),
        "reference='small.npz': is of 7 features: must be of 128, as 'mnist' has",
    ),
    "reference of stated features": (
        ("--reference", "stated.npz", "--feature", "mnist"),
        "feature='mnist': stated.npz is of the features 'inception': must be the same",
    ),
    "reference of unknown features": (("--reference", "strange.npz"), "is of the features 'mine', which none"),
    "moments alone": (
        ("--reference", "moments.npz", "--metrics", "[fid, kid]"),
        "metrics: kid needs the reference's features, and moments.npz holds their moments alone",
    ),
    "moments have no neighbours": (("--reference", "moments.npz", "--neighbours", "2"), "neighbours=2: moments.npz"),
    "folder of nothing": (("--reference", "empty"), "reference='empty': holds no pictures: must hold at least 2"),
    "folder of one": (("--reference", "one"), "reference='one': holds 1 pictures: must hold at least 2"),
    "folder of another size": (("--reference", "large"), "0.png has 40 × 28 pixels: must have 28 × 28"),
    "folder of no pictures": (
        ("--reference", "fake"),
        "reference: cannot read 2 pictures in fake: 0.png (no picture, or damaged), 1.png",
    ),
    "weights for digits": (("--feature_weights", "w.pth", "--feature", "mnist"), "feature_weights='w.pth': only"),
    "no weights": (("--feature_weights", "w.pth", "--feature", "inception"), "feature_weights: there is no file"),
    "export of a kind": (("--export_reference", "x.npy"), "export_reference='x.npy': must end in .npz"),
    "export over a file": (("--export_reference", "small.npz"), "export_reference='small.npz': is there already"),
    "export nowhere": (("--export_reference", "no/x.npz"), "export_reference='no/x.npz': its folder is not there"),
    "output in a file": (("--output", "config.yaml/x"), "output='config.yaml/x': no folder can be made there"),
    "output is a file": (("--output", "config.yaml"), "output='config.yaml': no folder can be made there"),
    "another device": (("--device", "abacus"), "device='abacus': cannot be used here"),
    "no seeds": (("--seeds", "0"), "seeds=0: must be at least 1"),
    "too few to extrapolate": (
        ("--num", "515", "--extrapolate", "true", "--feature", "digits"),
        "num=515: must be at least 516 to extrapolate FID in the 128 features digits; or leave --extrapolate out",
    ),
    "no FID to extrapolate": (
        ("--metrics", "[is]", "--extrapolate", "true"),
        "extrapolate: FID is not among --metrics is: add fid, or leave it out",
    ),
    "misspelt option": (("--nmu", "3"), "unknown option --nmu (did you mean --num?)"),
}


@pytest.fixture(scope="module")
def wrong(trained, tmp_path_factory) -> Path:
    """A folder of files that are not what they should be, beside a run."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(trained, folder / "run")
    shutil.copytree(trained, folder / "broken")
    (folder / "broken" / "config.yaml").write_text("data: {class_path: EmbeddedMNIST, init_args: {sise: 3}}\n")
    shutil.copy(trained / "checkpoints" / "last.ckpt", folder / "lone.ckpt")
    (folder / "config.yaml").write_text("a file\n")
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04nothing")
    for name, size, more in (
        ("small", 7, {}),
        ("moments", 128, {}),
        ("stated", 128, {"feature": "inception"}),
        ("strange", 128, {"feature": "mine"}),
    ):
        np.savez(folder / f"{name}.npz", mu=np.zeros(size), sigma=np.eye(size), **more)
    for name, sizes in (("empty", ()), ("one", [(28, 28)]), ("large", [(40, 28), (28, 28)])):
        (folder / name).mkdir()
        for index, size in enumerate(sizes):
            Image.new("L", size).save(folder / name / f"{index}.png")
    (folder / "fake").mkdir()
    for index in range(2):
        (folder / "fake" / f"{index}.png").write_text("no picture")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_before_any_work(wrong, capsys, monkeypatch, mistake):
    def sample(*_, **__):
        raise AssertionError("drawing has begun")

    monkeypatch.setattr(DrawsSamples, "sample", sample)
    monkeypatch.chdir(wrong)
    options, message = MISTAKES[mistake]
    before = {path: path.stat().st_mtime_ns for path in wrong.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", *LAST, *options])
    output = capsys.readouterr().err.strip()
    assert done.value.code == 1
    assert output.splitlines()[-1].startswith("lightning: error: ")
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert {path: path.stat().st_mtime_ns for path in wrong.rglob("*") if path.is_file()} == before
    assert not list(wrong.rglob("evaluations"))
