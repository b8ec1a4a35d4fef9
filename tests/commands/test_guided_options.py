"""`--guidance`, spelt alike by the commands that draw samples; what it may not be, in one line."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_run import failure

from diffusion_lightning import (
    AutoGuidance,
    ClassifierFreeGuidance,
    EmbeddedMNIST,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    ScoreModule,
    UNet,
    cli,
    load_denoiser,
)
from diffusion_lightning.training.trained import TrainedModel

UNET = {"channels": [4], "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False, "patch_size": 4}
OWN = partial(ClassifierFreeGuidance, weight=2.0)
TRIPLE = ("--guidance", "ClassifierFreeGuidance", "--guidance.weight", "3", "--guidance.interval", "[0.2,3]")
CPU = ("--device", "cpu", "--precision", "32-true", "--quiet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with runs: guided by default, trained without dropout, told of nothing."""
    from lightning.pytorch import Trainer

    folder = tmp_path_factory.mktemp("guided")
    for name, classes, more in (
        ("guided", 10, {"condition_dropout": 0.1, "guidance": OWN}),
        ("plain", 10, {}),
        ("untold", None, {}),
    ):
        torch.manual_seed(0)
        network = UNet(**UNET, num_classes=classes)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        module = ScoreModule(
            network, KarrasSDE(), KarrasPreconditioning(), sampler=Heun(steps=4), ema_decay=0.5, **more
        )
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(accelerator="cpu", max_steps=1, num_sanity_val_steps=0, limit_val_batches=0, **quiet)
        trainer.fit(module, datamodule=EmbeddedMNIST(batch_size=8))
        trainer.save_checkpoint(folder / name / "version_0" / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch) -> Path:
    """This process works in an empty folder beside the runs."""
    monkeypatch.chdir(tmp_path)
    for run in runs.iterdir():
        (tmp_path / run.name).symlink_to(run)
    return tmp_path


def samples(capsys, *options: str, run: str = "guided") -> tuple[np.ndarray, str]:
    cli.main(["sample", "--ckpt_path", run, "--num", "3", "--output", "x.npz", *CPU, *options])
    return np.load("x.npz")["samples"], capsys.readouterr().out


def in_eight_bits(model: TrainedModel, **kwargs) -> np.ndarray:
    from diffusion_lightning.images import to_uint8

    drawn = model.sample(num=3, generator=torch.Generator().manual_seed(0), **kwargs)
    return to_uint8(drawn).permute(0, 2, 3, 1).numpy()


def test_sample(here, capsys):
    model = TrainedModel.load("guided/version_0/checkpoints/last.ckpt")
    own, said = samples(capsys)
    assert "Heun, ClassifierFreeGuidance(weight=2), 14 NFE" in said
    assert np.array_equal(own, in_eight_bits(model))
    none, said = samples(capsys, "--guidance", "null")
    assert "Heun, 7 NFE" in said
    assert np.array_equal(none, in_eight_bits(model, guidance=None))
    one, said = samples(capsys, "--guidance", "ClassifierFreeGuidance", "--guidance.weight", "1")
    assert "ClassifierFreeGuidance(weight=1), 7 NFE" in said
    assert np.array_equal(one, none)
    triple, said = samples(capsys, *TRIPLE)
    assert "ClassifierFreeGuidance(weight=3, interval=[0.2, 3])" in said
    maker = partial(ClassifierFreeGuidance, weight=3.0, interval=[0.2, 3.0])
    assert np.array_equal(triple, in_eight_bits(model, guidance=maker))
    assert len({each.tobytes() for each in (own, none, triple)}) == 3


def test_a_worse_model_is_a_run_or_a_file(here, capsys):
    model, worse = (TrainedModel.load(f"{name}/version_0/checkpoints/last.ckpt") for name in ("guided", "plain"))
    expected = in_eight_bits(model, guidance=partial(AutoGuidance, worse=worse.denoiser, weight=2.0))
    for path in ("plain", "plain/version_0/checkpoints/last.ckpt"):
        drawn, said = samples(capsys, "--guidance", "AutoGuidance", "--guidance.worse", path, "--guidance.weight", "2")
        assert np.array_equal(drawn, expected)
        assert "AutoGuidance(worse=plain/version_0/checkpoints/last.ckpt, weight=2), 14 NFE" in said


def predicting(here: Path, **model) -> list[str]:
    """The command line of a prediction by the run's network, and what else its config says of the model."""
    config = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": str(here)},
        "model": {
            "network": {"class_path": "diffusion_lightning.UNet", "init_args": {**UNET, "num_classes": 10}},
            "sde": {"class_path": "diffusion_lightning.KarrasSDE"},
            "parameterization": {"class_path": "diffusion_lightning.KarrasPreconditioning"},
            "sampler": {"class_path": "diffusion_lightning.Heun", "init_args": {"steps": 4}},
            "condition_dropout": 0.1,
            **model,
        },
        "data": {"class_path": "diffusion_lightning.EmbeddedMNIST", "init_args": {"num_predict": 3}},
    }
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    return ["predict", "--config", "config.yaml", "--ckpt_path", "plain/version_0/checkpoints/last.ckpt"]


def test_predict(here, capsys):
    own = {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 3.0, "interval": [0.2, 3.0]}}

    def pictures(*options: str, **model) -> list[bytes]:
        folder = here / "predictions"
        cli.main([*predicting(here, **model), *options])
        found = sorted(folder.glob("*.png"))
        read = [path.read_bytes() for path in found]
        for path in found:
            path.unlink()
        return read

    by_config, by_option, bare = pictures(guidance=own), pictures(*TRIPLE), pictures(*NONE, guidance=own)
    assert len(by_config) == 3
    assert by_config == by_option
    assert bare != by_option


def test_export_and_the_way_back(here, capsys):
    model = TrainedModel.load("guided/version_0/checkpoints/last.ckpt")
    x, t, labels = torch.randn(2, 1, 28, 28), torch.tensor([0.5, 20.0]), torch.tensor([3, 8])
    common = ["export", "--ckpt_path", "guided", "--format", "safetensors", "--overwrite", "--output", "out"]
    for options, guidance in ((), OWN), (TRIPLE, partial(OWN, weight=3.0, interval=[0.2, 3.0])), (NONE, None):
        cli.main([*common, *options])
        said = capsys.readouterr().out
        assert ("guided by ClassifierFreeGuidance" in said) == (guidance is not None)
        with torch.no_grad():
            expected = model.guided(guidance).denoise(x, t, labels=labels)
            assert torch.equal(load_denoiser("out").denoise(x, t, labels=labels), expected)
            bare = load_denoiser("out", guidance=None)
            assert torch.equal(bare.denoise(x, t, labels=labels), model.denoiser.denoise(x, t, labels=labels))
    path = "guided/version_0/checkpoints/last.ckpt"
    with torch.no_grad():
        own = load_denoiser(path).denoise(x, t, labels=labels)
        assert torch.equal(own, model.guided().denoise(x, t, labels=labels))
        assert not torch.equal(own, load_denoiser(path, guidance=None).denoise(x, t, labels=labels))


NONE = ("--guidance", "null")
AUTO = ("--guidance", "AutoGuidance", "--guidance.worse", "plain")


def test_what_a_format_cannot_hold(here, capsys):
    pytest.importorskip("diffusers")
    export = ("export", "--ckpt_path", "guided", "--output", "out", "--format")
    said = failure(capsys, *export, "diffusers", *TRIPLE)
    assert said.startswith(
        "guidance=ClassifierFreeGuidance(weight=3, interval=[0.2, 3]): --format diffusers cannot hold"
    )
    assert "it holds one network: --format torch_export does" in failure(capsys, *export, "safetensors", *AUTO)
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate", "export"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ClassifierFreeGuidance", "--guidance.weight", ".inf"), "guidance.weight=inf: must be a finite number"),
        (("ClassifierFreeGuidance", "--guidance.weight", "two"), 'option "weight": Expected a float. Got value: two'),
        (("ClassifierFreeGuidance", "--guidance.interval", "[3,0.2]"), "guidance.interval=[3.0, 0.2]: must be two"),
        (("ClassifierFreeGuidence",), "(did you mean ClassifierFreeGuidance?)"),
        (("ClassifierFreeGuidance", "--guidance.wait", "2"), "Option 'wait' is not accepted (did you mean weight?)"),
        (("Heun",), 'option "guidance"'),
        (("own", "--guidance.weight", "2"), "name the class, too: ClassifierFreeGuidance"),
        (("AutoGuidance", "--guidance.worse", "nowhere"), "guidance.worse='nowhere': there is no such file"),
        (("AutoGuidance", "--guidance.worse", "empty"), "guidance.worse='empty': is no run"),
        (("AutoGuidance", "--guidance.worse", "untold"), "is told of nothing: must be of 10 classes"),
        (('{"class_path": "torch.save", "init_args": {"obj": 1, "f": "CANARY"}}',), "torch.save is a function"),
    ],
)
def test_bad_guidance_is_one_line_and_leaves_nothing(here, capsys, command, options, message):
    Path("empty").mkdir()
    more = {"export": ("--format", "torch_export", "--output", "out"), "evaluate": ("--num", "2", *DIGITS)}
    said = failure(capsys, command, "--ckpt_path", "guided", *more.get(command, ()), "--guidance", *options)
    assert message in said
    assert "own'" not in said
    assert {path.name for path in here.iterdir()} <= {"guided", "plain", "untold", "empty"}


DIGITS = ("--data", "EmbeddedMNIST", "--feature", "mnist")


@pytest.mark.parametrize("command", ["sample", "export"])
def test_a_network_that_is_told_nothing(here, capsys, command):
    more = {"export": ("--format", "safetensors", "--output", "out")}.get(command, ())
    said = failure(capsys, command, "--ckpt_path", "untold", *more, "--guidance", "ClassifierFreeGuidance")
    assert "UNet is told of no condition, and it would change nothing" in said


def test_a_null_class_that_was_never_trained(here, capsys):
    with pytest.warns(UserWarning, match="trained with condition_dropout=0"):
        samples(capsys, *TRIPLE, run="plain")


def test_no_config_has_a_function_called(here, capsys):
    """Neither as a module's guidance nor as a callback's."""
    dangerous = {"class_path": "torch.save", "init_args": {"obj": 1, "f": "CANARY"}}
    assert "torch.save is a function" in failure(capsys, *predicting(here, guidance=dangerous))
    config = yaml.safe_load(Path("config.yaml").read_text())
    grid = {"class_path": "diffusion_lightning.SampleGrid", "init_args": {"guidance": dangerous}}
    config["trainer"]["callbacks"], config["model"]["guidance"] = [grid], None
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert "trainer.callbacks" in failure(capsys, "fit", "--config", "config.yaml")
    assert not Path("CANARY").exists()


def test_an_evaluation_says_what_steered_it(here, capsys):
    common = ["evaluate", "--ckpt_path", "guided", "--num", "6", "--metrics", "[is]", "--feature", "mnist", *CPU]
    for options, name in ((), "ClassifierFreeGuidance(weight=2)"), (NONE, None):
        cli.main([*common, *options, "--output", "out"])
        folder = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("Everything is in "))
        entry = json.loads((folder / "results.json").read_text())
        assert entry["guidance"] == name
        assert entry["settings"].get("guidance") == name
        assert entry["sampler"] == "Heun(steps=4)"
        assert entry["nfe"] == (7 if name is None else 14)
        assert ("ClassifierFreeGuidance-weight=2" in folder.name) == (name is not None)
        table = (folder / "results.md").read_text()
        assert (re.search(r"\| guidance +\| ClassifierFreeGuidance\(weight=2\) ", table) is None) == (name is None)


def test_a_sweep_over_weights(here, capsys):
    common = ["evaluate", "--ckpt_path", "guided", "--num", "6", *DIGITS, "--neighbours", "0", *CPU, "--output", "out"]
    cli.main([*common, "--metrics", "[is,agreement]", "--sweep.guidance_weights", "[1,3,1]", "--sweep.steps", "[2,3]"])
    out = capsys.readouterr().out
    folder = Path(out.strip().splitlines()[-1].removeprefix("Everything is in "))
    assert "ClassifierFreeGuidance_2_weights" in folder.name.replace("-", "_")
    assert {path.name for path in folder.iterdir()} == {"results.json", "results.md", "guidance.png", "worst.png"}
    entries = json.loads((folder / "results.json").read_text())["sweep"]
    assert [(entry["sampler"], entry["guidance"], entry["nfe"]) for entry in entries] == [
        ("Heun(steps=2)", "ClassifierFreeGuidance(weight=1)", 3),
        ("Heun(steps=2)", "ClassifierFreeGuidance(weight=3)", 6),
        ("Heun(steps=3)", "ClassifierFreeGuidance(weight=1)", 5),
        ("Heun(steps=3)", "ClassifierFreeGuidance(weight=3)", 10),
    ]
    cli.main([*common, "--metrics", "[is]", *NONE, "--sweep.steps", "[2,3]"])
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("Everything is in "))
    bare = json.loads((folder / "results.json").read_text())["sweep"]
    assert [entry["guidance"] for entry in bare] == [None, None]
    for entry, place in zip(bare, (0, 2), strict=True):  # weight 1 is no guidance, bit for bit
        name = "is/mnist@6"
        assert entry["metrics"][name] == entries[place]["metrics"][name] != entries[place + 1]["metrics"][name]
    assert "must be finite numbers" in failure(capsys, *common, "--sweep.guidance_weights", "[1,.nan]")
    assert "name at least one" in failure(capsys, *common, "--sweep.guidance_weights", "[]")
