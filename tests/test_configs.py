from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusion_lightning import ScoreModule, cli
from diffusion_lightning.recipe import build

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))


def resolved(capsys: pytest.CaptureFixture[str], *files: Path) -> dict[str, Any]:
    """What the real command makes of these files."""
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", *(part for file in files for part in ("--config", str(file))), "--print_config"])
    output = capsys.readouterr()
    assert done.value.code in (0, None), output.err
    assert "Unable to serialize" not in output.out
    return yaml.safe_load(output.out)


def test_they_are_all_there():
    assert {"quickstart", "mnist", "cifar10", "mnist_score_net"} <= {file.stem for file in RECIPES}
    assert {"gpu", "ddp", "debug"} <= {file.stem for file in OVERLAYS}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_makes_a_module_that_fits_its_data(capsys, recipe):
    config = resolved(capsys, recipe)
    module = build(ScoreModule, config["model"])
    shape = {"MNIST": (1, 28, 28), "EmbeddedMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}
    x = torch.zeros(2, *shape[config["data"]["class_path"].split(".")[-1]])
    with torch.no_grad():
        assert module.objective(module.denoiser, x).isfinite().all()
    assert module.configure_optimizers() is not None
    for callback in config["trainer"]["callbacks"]:
        assert callback["class_path"].startswith("diffusion_lightning.")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_changes_what_it_says_and_nothing_else(capsys, recipe, overlay):
    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        both = {
            k: merge(base[k], v) if isinstance(v, dict) and isinstance(base[k], dict) else v for k, v in over.items()
        }
        return {**base, **both}

    changes = yaml.safe_load(overlay.read_text())
    callbacks = changes["trainer"].pop("callbacks", None)
    plain, config = resolved(capsys, recipe), resolved(capsys, recipe, overlay)
    if callbacks is not None:
        given = config["trainer"].pop("callbacks")
        assert [callback["class_path"] for callback in given] == [callback["class_path"] for callback in callbacks]
        plain["trainer"].pop("callbacks")
    assert config == merge(plain, changes)


def test_the_tutorials_numbers(capsys):
    """mnist_score_net.yaml against the tutorial: its network, process, loss, optimizer and samplers."""
    config = resolved(capsys, CONFIGS / "mnist_score_net.yaml")
    model = config["model"]
    network = build(ScoreModule, model).network
    assert sum(p.numel() for p in network.parameters()) == 1_115_425
    assert model["sde"] == {"class_path": "diffusion_lightning.PowerVESDE", "init_args": {"sigma": 25.0}}
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.Adam", 1e-4)
    assert (model["ema_decay"], model["clip_norm"], model["lr_scheduler"]) == (0.0, None, None)
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["trainer"]["max_epochs"] == 50
    assert (model["sampler"]["init_args"]["snr"], model["sampler"]["init_args"]["steps"]) == (0.16, 500)
