"""Class options: a name of ours wins, and what another class keeps of the former one's arguments is said."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import _typehints

import diffusion_lightning
from diffusion_lightning.commands import cli
from diffusion_lightning.commands.class_options import ClassOptions

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def resolved(capsys):
    """What `lightning fit` makes of its options, as a config, and what it says of it."""

    def run(config: str, *args: str):
        with pytest.raises(SystemExit) as done:
            cli.main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *args, "--print_config"])
        captured = capsys.readouterr()
        assert done.value.code in (0, None), captured.err
        lines = [line for line in captured.err.splitlines() if line.startswith("lightning: ")]
        return yaml.safe_load(captured.out), lines

    return run


# ---- names


def test_every_name_of_ours_wins_wherever_it_fits():
    for others in ("torchvision.models", "torchvision.ops", "torchvision.datasets", "timm.optim", "diffusers"):
        importlib.import_module(others)
    for name in ("UNet2DModel", "DDPMScheduler"):  # of a lazy package
        getattr(importlib.import_module("diffusers"), name)
    fit = cli.parser_of("fit")
    options = {action.dest: action._typehint for action in fit._actions if hasattr(action, "_typehint")}
    types = {option: _typehints.get_class_types(hint) for option, hint in options.items()}
    found, ambiguous = {}, set()
    for name in diffusion_lightning.__all__:
        cls = getattr(diffusion_lightning, name)
        for option, bases in types.items():
            if isinstance(cls, type) and bases and issubclass(cls, bases):
                with ClassOptions().watched():
                    path = _typehints.resolve_class_path_by_name(options[option], name)
                assert path == f"diffusion_lightning.{name}", option
                found.setdefault(option, set()).add(name)
                try:
                    _typehints.resolve_class_path_by_name(options[option], name)
                except ValueError:
                    ambiguous.add(name)
    assert {"MLP", "WandbLogger", "TensorBoardLogger"} <= ambiguous  # or the test would show nothing
    assert found.keys() >= {
        *(f"trainer.{name}" for name in ("logger", "callbacks", "plugins")),
        *(f"model.{name}" for name in ("network", "sde", "parameterization", "objective", "sampler", "augment")),
        "data",
    }


def test_names_on_the_command_line_in_configs_and_for_help(resolved, tmp_path, capsys):
    config, _ = resolved("points_ddpm", "--trainer.logger", "TensorBoardLogger", "--model.network", "MLP")
    assert config["trainer"]["logger"]["class_path"] == "diffusion_lightning.TensorBoardLogger"
    assert config["model"]["network"]["class_path"] == "diffusion_lightning.MLP"
    overlay = tmp_path / "overlay.yaml"
    loggers = [{"class_path": "WandbLogger"}, {"class_path": "TensorBoardLogger"}]
    overlay.write_text(yaml.safe_dump({"trainer": {"logger": loggers}, "model": {"network": {"class_path": "MLP"}}}))
    config, _ = resolved("points_ddpm", "--config", str(overlay))
    paths = [logger["class_path"] for logger in config["trainer"]["logger"]]
    assert paths == ["diffusion_lightning.WandbLogger", "diffusion_lightning.TensorBoardLogger"]
    assert config["model"]["network"]["class_path"] == "diffusion_lightning.MLP"
    with pytest.raises(SystemExit):
        cli.main(["fit", "--model.network.help", "MLP"])
    assert "--model.network.hidden" in capsys.readouterr().out


def test_the_names_of_others_are_still_known(resolved):
    config, _ = resolved("mnist", "--model.optimizer", "Adam", "--trainer.profiler", "SimpleProfiler")
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.Adam"
    assert config["trainer"]["profiler"]["class_path"] == "lightning.pytorch.profilers.SimpleProfiler"


# ---- arguments

ADAMW = "lightning: --model.optimizer torch.optim.AdamW keeps "
OF_MUON = " of timm.optim.Muon; to be set by "


@pytest.mark.parametrize(
    ("config", "args", "line"),
    [
        (
            "mnist",
            ("--model.optimizer", "torch.optim.AdamW"),
            f"{ADAMW}lr=0.01, betas=[0.9, 0.99]{OF_MUON}--model.optimizer.lr, --model.optimizer.betas",
        ),
        (  # the same value, but the user's
            "mnist",
            ("--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr", "0.01"),
            f"{ADAMW}betas=[0.9, 0.99]{OF_MUON}--model.optimizer.betas",
        ),
        (
            "mnist",
            ("--model.optimizer.lr", "0.02", "--model.optimizer", "torch.optim.AdamW"),
            f"{ADAMW}betas=[0.9, 0.99]{OF_MUON}--model.optimizer.betas",
        ),
        (
            "mnist",
            ("--model.optimizer", '{"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.99]}}'),
            f"{ADAMW}lr=0.01{OF_MUON}--model.optimizer.lr",
        ),
        (
            "mnist",
            ("--model.sampler", "Heun"),
            "lightning: --model.sampler diffusion_lightning.Heun keeps steps=14 of diffusion_lightning."
            "DPMSolverPlusPlus; to be set by --model.sampler.steps",
        ),
        (
            "cifar10_ddpm64",
            ("--data", "ImageFolder", "--data.root", "x"),
            "lightning: --data diffusion_lightning.ImageFolder keeps batch_size=16, image_size=64 of "
            "diffusion_lightning.CIFAR10; to be set by --data.batch_size, --data.image_size",
        ),
    ],
)
def test_what_another_class_keeps_is_one_line(resolved, config, args, line):
    assert resolved(config, *args)[1] == [line]


@pytest.mark.parametrize(
    "args",
    [
        ("--model.optimizer", "timm.optim.Muon"),  # it is this one
        (
            "--model.optimizer",
            "torch.optim.AdamW",
            "--model.optimizer.lr",
            "1e-3",
            "--model.optimizer.betas=[0.9,0.99]",
        ),
        ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "3"),  # nothing in common
        ("--model.objective.times", "UniformTimes"),
        ("--trainer.callbacks+=SampleGrid",),
        ("--trainer.logger", "TensorBoardLogger"),
        ("--model.optimizer", "torch.optim.AdamW", "--model.optimizer", "null"),
        ("--run_name", "2026-13-45"),  # which YAML would take for a date
    ],
)
def test_nothing_is_said_where_nothing_is_kept(resolved, args):
    assert resolved("mnist", *args)[1] == []


def test_a_later_config_keeps_too_and_the_kept_is_of_the_class_that_lasts(resolved, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.99]}}
    overlay.write_text(yaml.safe_dump({"model": {"optimizer": optimizer}}))
    config, lines = resolved("mnist", "--config", str(overlay))
    assert lines == [f"{ADAMW}lr=0.01{OF_MUON}--model.optimizer.lr"]
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.01
    _, lines = resolved("mnist", "--config", str(overlay), "--model.optimizer", "torch.optim.SGD")
    assert lines == [
        "lightning: --model.optimizer torch.optim.SGD keeps lr=0.01, weight_decay=0.01 of torch.optim.AdamW; to be set "
        "by --model.optimizer.lr, --model.optimizer.weight_decay"
    ]


def test_a_class_in_a_list_keeps_nothing_of_the_one_that_had_its_place(resolved):
    """FIDCallback's 10,000 samples would be as many rows of pictures."""
    without_fid = CONFIGS / "overlays" / "without_fid.yaml"
    text = json.dumps(yaml.safe_load(without_fid.read_text())["trainer"]["callbacks"])
    for args in (("--config", str(without_fid)), ("--trainer.callbacks", text)):
        config, lines = resolved("cifar10", *args)
        grid, denoising = config["trainer"]["callbacks"]
        assert (grid["init_args"]["num_samples"], grid["init_args"]["every_n_epochs"]) == (64, 1)
        assert denoising["class_path"] == "diffusion_lightning.DenoisingProcess"
        assert (denoising["init_args"]["num_samples"], denoising["init_args"]["every_n_epochs"]) == (6, 1)
        assert lines == []


def test_a_class_inside_the_last_one_of_a_list_is_told_of(resolved):
    config, lines = resolved("mnist_score_net", "--trainer.callbacks.sampler", "Heun")
    assert lines == [
        "lightning: --trainer.callbacks.sampler diffusion_lightning.Heun keeps t_min=0.001 of "
        "diffusion_lightning.ProbabilityFlowODE; to be set by --trainer.callbacks.sampler.t_min"
    ]
    assert [grid["init_args"]["every_n_epochs"] for grid in config["trainer"]["callbacks"]] == [10, 10, 10]
    config, lines = resolved(
        "mnist_score_net", "--trainer.callbacks.sampler=Heun", "--trainer.callbacks.sampler.t_min=0.1"
    )
    assert lines == []
    assert config["trainer"]["callbacks"][-1]["init_args"]["sampler"]["init_args"]["t_min"] == 0.1


def test_only_the_first_process_says_it(resolved, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert resolved("mnist", "--model.optimizer", "torch.optim.AdamW")[1] == []
