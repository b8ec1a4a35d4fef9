import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import records
import torch
import yaml
from torchvision.io import write_png

from diffusion_lightning import ScoreModule, cli
from diffusion_lightning.training.checkpoint_file import load_checkpoint
from diffusion_lightning.training.recipe import build
from diffusion_lightning.training.schedule import advance, follows_the_run, make_scheduler

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))
SHAPES = {"MNIST": (1, 28, 28), "EmbeddedMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32), "Points": (2,)}


def fits(recipe: Path, overlay: Path) -> bool:
    """Whether an overlay is meant for a recipe: one that changes the network's arguments, for the same network."""

    def network(file: Path) -> str | None:
        return yaml.safe_load(file.read_text()).get("model", {}).get("network", {}).get("class_path")

    return network(overlay) in (None, network(recipe))


RESOLVED: dict[tuple[Path, ...], str] = {}
"""What the command has printed already."""


def resolved(capsys: pytest.CaptureFixture[str], *files: Path) -> dict[str, Any]:
    """What the real command makes of these files."""
    if files not in RESOLVED:
        with pytest.raises(SystemExit) as done:
            cli.main(["fit", *(part for file in files for part in ("--config", str(file))), "--print_config"])
        output = capsys.readouterr()
        assert done.value.code in (0, None), output.err
        assert "Unable to serialize" not in output.out
        RESOLVED[files] = output.out
    return yaml.safe_load(RESOLVED[files])


def test_they_are_all_there():
    assert {file.stem for file in RECIPES} == {
        *(
            "quickstart",
            "mnist",
            "mnist_super_resolution",
            "mnist_unlabelled",
            "mnist_score_net",
            "mnist_unet_vp",
            "points_ncsn",
            "points_ddpm",
        ),
        *("cifar10", "cifar10_score_net", "cifar10_unet_vp", "cifar10_ddpm64", "cifar10_edm", "cifar10_diffusers"),
    }
    assert {file.stem for file in OVERLAYS} == {"gpu", "ddp", "fsdp", "debug", "small_unet", "without_fid"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_makes_a_module_that_fits_its_data(capsys, recipe):
    config = resolved(capsys, recipe)
    module = build(ScoreModule, config["model"])
    shape = SHAPES[config["data"]["class_path"].split(".")[-1]]
    if size := config["data"]["init_args"].get("image_size"):
        shape = (shape[0], size, size)
    x = torch.zeros(2, *shape)
    with torch.no_grad():
        assert module.objective(module.denoiser, x).isfinite().all()
    assert module.configure_optimizers() is not None
    for callback in config["trainer"]["callbacks"]:
        assert callback["class_path"].startswith("diffusion_lightning.")


@pytest.mark.parametrize(
    ("recipe", "overlay"),
    [  # each overlay with every third of the recipes that it is for
        (recipe, overlay)
        for n, overlay in enumerate(OVERLAYS)
        for recipe in [recipe for recipe in RECIPES if fits(recipe, overlay)][n % 3 :: 3]
    ],
    ids=lambda file: file.stem,
)
def test_an_overlay_changes_what_it_says_and_nothing_else(capsys, recipe, overlay):
    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        both = {
            k: merge(base[k], v) if isinstance(v, dict) and isinstance(base[k], dict) else v for k, v in over.items()
        }
        return {**base, **both}

    changes = yaml.safe_load(overlay.read_text())
    callbacks = changes.get("trainer", {}).pop("callbacks", None)
    plain, config = resolved(capsys, recipe), resolved(capsys, recipe, overlay)
    if callbacks is not None:
        given = config["trainer"].pop("callbacks")
        assert [callback["class_path"] for callback in given] == [callback["class_path"] for callback in callbacks]
        plain["trainer"].pop("callbacks")
    if isinstance(strategy := changes.get("trainer", {}).get("strategy"), dict):  # the parser adds its other defaults
        changes["trainer"]["strategy"] = merge(config["trainer"]["strategy"], strategy)
    assert config == merge(plain, changes)


def test_the_tutorials_numbers(capsys):
    """mnist_score_net.yaml against the tutorial: its network, process, loss, optimizer and samplers."""
    config = resolved(capsys, CONFIGS / "mnist_score_net.yaml")
    model = config["model"]
    network = build(ScoreModule, model).network
    assert sum(p.numel() for p in network.parameters()) == 1_115_425
    assert model["sde"] == {"class_path": "diffusion_lightning.PowerVESDE", "init_args": {"sigma": 25.0}}
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.Adam", 1e-4)
    assert model["optimizer"]["init_args"]["weight_decay"] == 0
    assert (model["ema_decay"], model["clip_norm"], model["lr_scheduler"]) == (0.0, None, None)
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["trainer"]["max_epochs"] == 50
    assert (model["sampler"]["init_args"]["snr"], model["sampler"]["init_args"]["steps"]) == (0.16, 500)


def trainable(config: dict[str, Any]) -> int:
    return sum(p.numel() for p in build(ScoreModule, config["model"]).network.parameters() if p.requires_grad)


def test_model_b_and_model_1(capsys):
    """cifar10_score_net.yaml against the document: both networks' sizes, and the loss summed over the dimensions."""
    config = resolved(capsys, CONFIGS / "cifar10_score_net.yaml")
    assert trainable(config) == 6_844_579
    assert config["model"]["objective"]["init_args"]["reduction"] == "sum"
    config["model"]["network"]["init_args"]["channels"] = [32, 64, 128, 256]
    assert trainable(config) == 1_790_819


def test_the_ddpm_notebooks_numbers(capsys):
    """cifar10_ddpm64.yaml: 1,000 steps, β from 1e-4 to 0.02, AdamW at 1e-4, a plateau scheduler on the epoch's loss."""
    config = resolved(capsys, CONFIGS / "cifar10_ddpm64.yaml")
    model = config["model"]
    assert model["sde"]["init_args"] == {
        "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "schedule": "linear",
    }  # fmt: skip
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.AdamW", 1e-4)
    assert model["lr_scheduler"]["init_args"]["monitor"] == "train/loss_epoch"
    optimizers = build(ScoreModule, model).configure_optimizers()
    assert optimizers["lr_scheduler"]["scheduler"].monitor == "train/loss_epoch"
    assert isinstance(optimizers["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert config["data"]["init_args"]["image_size"] == 64


def test_the_points_recipes_run_and_leave_their_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampler = json.dumps({"class_path": "Heun", "init_args": {"steps": 3}})
    short = {"max_epochs": 1, "limit_train_batches": 2, "logger": "null", "enable_progress_bar": "false"}
    options = [part for name, value in short.items() for part in (f"--trainer.{name}", str(value))]
    for name in ("points_ncsn", "points_ddpm"):
        recipe = ["--config", str(CONFIGS / f"{name}.yaml"), "--data.distribution", "heart", "--model.sampler", sampler]
        cli.main(["fit", *recipe, *options])
        folder = tmp_path / "runs" / name / "version_0"
        assert (folder / "field" / "epoch=0000.png").is_file()
        assert "sliced_wasserstein@2000" in (folder / "metrics.csv").read_text()


def test_the_edm_papers_numbers(capsys):
    """cifar10_edm.yaml against table 7 and the authors' defaults for 32×32 without classes."""
    config = resolved(capsys, CONFIGS / "cifar10_edm.yaml")
    model, data = config["model"], config["data"]["init_args"]
    network = model["network"]["init_args"]
    assert (network["channels"], network["num_res_blocks"], network["dropout"]) == ([256, 256, 256], 4, 0.13)
    assert (network["attention_levels"], network["num_heads"], network["embed_dim"]) == ([1], 1, 512)
    assert (network["num_classes"], network["augment_dim"]) == (None, 9)
    assert trainable(config) == pytest.approx(55.7e6, rel=0.05)
    times = model["objective"]["init_args"]["times"]["init_args"]
    assert (times["mean"], times["std"], times["stratified"]) == (-1.2, 1.2, False)
    optimizer = model["optimizer"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (1e-3, [0.9, 0.999], 1e-8)
    assert optimizer["weight_decay"] == 0
    assert model["clip_norm"] is None
    assert model["augment"]["init_args"]["probability"] == 0.12
    assert (data["batch_size"], data["flip"]) == (512, False)
    assert config["trainer"]["max_steps"] * 512 == 200e6
    assert model["lr_scheduler"]["init_args"]["total_iters"] * 512 == pytest.approx(10e6, rel=1e-4)
    assert model["ema_decay"] == pytest.approx(0.5 ** (512 / 0.5e6), abs=1e-6)


@pytest.mark.parametrize(("devices", "batch_size", "steps"), [(1, 256, 49_920), (8, 32, 49_920), (8, 256, 6_144)])
def test_the_hours_schedule_is_as_long_as_its_epochs(capsys, devices, batch_size, steps):
    """cifar10.yaml: on any number of GPUs the rate is gone when the last of 50,000 pictures' 256 epochs ends."""
    config = resolved(capsys, CONFIGS / "cifar10.yaml")
    assert config["trainer"]["max_epochs"] * (50_000 // (batch_size * devices)) == steps
    module = build(ScoreModule, config["model"])
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])  # its schedule alone matters
    assert module.lr_scheduler is not None
    scheduler = make_scheduler(module.lr_scheduler, optimizer, steps)
    rates = []
    optimizer.step()  # a schedule warns if there was none before it
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        advance(scheduler)
    assert rates[0] == pytest.approx(8e-6)
    assert max(rates) == pytest.approx(8e-4)
    assert rates.index(max(rates)) == pytest.approx(0.02 * steps, abs=2)
    assert optimizer.param_groups[0]["lr"] < 1e-8


@pytest.mark.parametrize("name", ["quickstart", "mnist", "points_ncsn", "points_ddpm", "cifar10"])
def test_the_recipes_schedules_follow_the_run(capsys, name):
    module = build(ScoreModule, resolved(capsys, CONFIGS / f"{name}.yaml")["model"])
    assert module.lr_scheduler is not None
    assert follows_the_run(module.lr_scheduler)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_edm"])
def test_a_cifar10_recipe_takes_its_steps_and_goes_on(tmp_path, monkeypatch, name):
    """On a CPU, with a small network and noise for pictures: its own optimizer, schedule and augmentation."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=generator)
        path = tmp_path / "pictures" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(pixels, str(path))
    data = ["--data", "ImageFolder", "--data.root", "pictures", "--data.batch_size", "4"]
    network = ["--model.network.channels", "[8, 8]", "--model.network.embed_dim", "16"]
    recipe = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(CONFIGS / "overlays" / "small_unet.yaml")]
    short = ["--trainer.callbacks", "null", "--trainer.logger", "null", "--trainer.enable_progress_bar", "false"]
    options = [*recipe, *data, *network, *short, "--trainer.accelerator", "cpu"]
    cli.main(["fit", *options, "--trainer.max_epochs", "-1", "--trainer.max_steps", "1"])
    cli.main(["fit", *options, "--trainer.max_epochs", "-1", "--trainer.max_steps", "3", "--ckpt_path", "last"])
    checkpoint = load_checkpoint(tmp_path / "runs" / name / "version_0" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 3
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_thirty_steps_are_those_on_record(tmp_path, monkeypatch, recipe):
    """A recipe that gets worse is seen here; one that changes on purpose is written anew: tests/records.py."""
    monkeypatch.chdir(tmp_path)
    kept = json.loads((records.FOLDER / f"{recipe.stem}.json").read_text())
    found = records.train(recipe.stem)
    assert found.keys() == kept.keys()
    assert (len(found["train/loss_step"]), len(found["val/loss"])) == (30, 2)
    for name, figures in kept.items():
        assert found[name] == pytest.approx(figures, rel=0.02), name


def test_there_is_a_record_of_each_config_and_no_other():
    assert {path.stem for path in records.FOLDER.glob("*.json")} == {path.stem for path in RECIPES}


OF_EXTRAS = {"TensorBoardLogger": ("tensorboard", "tensorboardX"), "DiffusersUNet": ("diffusers",)}
"""Classes and what they import that the package does not depend on."""


def test_what_a_recipe_needs_beside_the_package_is_its_first_line_and_its_error(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for modules in OF_EXTRAS.values():
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    needing = set()
    for path in RECIPES:
        text = path.read_text()
        # all else is of what the package depends on
        assert set(re.findall(r"class_path: (\w+)\.", text)) <= {"diffusion_lightning", "torch", "timm", "lightning"}
        command = re.search(r"^#   (pip install 'diffusion-lightning\[\w+\]')$", text, re.MULTILINE)
        assert bool(command) == any(name in text for name in OF_EXTRAS), path.name
        if command:
            needing.add(path.stem)
            with pytest.raises(SystemExit):
                cli.main(["fit", "--config", str(path)])
            assert capsys.readouterr().err.strip().endswith(f"needs the package {command[1][33:-2]}: {command[1]}")
    assert needing == {"cifar10_ddpm64", "cifar10_diffusers"}
    assert list(tmp_path.iterdir()) == []


def test_every_extra_that_is_named_is_there():
    extras = (CONFIGS.parent / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    sources = [*RECIPES, *(CONFIGS.parent / "diffusion_lightning").rglob("*.py")]
    named = {name for file in sources for name in re.findall(r"diffusion-lightning\[(\w+)\]", file.read_text())}
    assert named == {"demo", "diffusers", "export", "tensorboard"}
    assert named <= set(re.findall(r"^(\w+) = ", extras, re.MULTILINE))
