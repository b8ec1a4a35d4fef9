"""Hostile configs and command lines: every one ends in one line and a non-zero exit code, and changes nothing.

All go through the real entry point. Only what an accepted config would start is kept from starting: the loop over the
epochs raises instead, which no wrong config may reach.
"""

import contextlib
import copy
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loops.fit_loop import _FitLoop

from diffusion_lightning.commands import cli

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
QUICKSTART, POINTS = str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "points_ddpm.yaml")
CPU = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "null")
CANARY = "canary"
"""The file that foreign code would make."""

Place = tuple[str | int, ...]
PREFIX = "lightning: error: "

fuzz = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
)


class TrainingStarted(BaseException):
    """A config was accepted."""


def _start(self: Any) -> None:
    raise TrainingStarted


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This process works in a folder with a checkpoint, of two steps on points, and files that are no configs."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lightning"])
        short = {"max_epochs": 1, "limit_train_batches": 2, "callbacks": "null", "enable_progress_bar": "false"}
        options = [part for name, value in short.items() for part in (f"--trainer.{name}", str(value))]
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(["fit", "--config", POINTS, *CPU, "--model.network.hidden", "[4]", *options])
        (folder / "runs" / "points_ddpm" / "version_0" / "checkpoints" / "last.ckpt").rename("good.ckpt")
        for path in sorted((folder / "runs").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / "runs").rmdir()
        for name, content in FILES.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (folder / "folder").mkdir()
        patch.setattr(_FitLoop, "run", _start)
        yield folder


FILES: dict[str, str | bytes] = {
    "empty.yaml": "",
    "null.yaml": "null",
    "scalar.yaml": "3",
    "list.yaml": "[1, 2]",
    "syntax.yaml": "model: [1\n",
    "tab.yaml": "model:\n\tsde: x",
    "binary.yaml": bytes(range(256)) * 8,
    "latin1.yaml": "model: ä".encode("latin-1"),
    "utf16.yaml": "model: {}".encode("utf-16"),
    "control.yaml": "model: \0",
    "number_key.yaml": "1: 2",
    "list_key.yaml": "? [1]\n: 2",
    "deep.yaml": "model: " + "{a: " * 3000 + "1" + "}" * 3000,
    "deep_list.yaml": "model: " + "[" * 3000 + "]" * 3000,
    "cycle.yaml": "model: &a [*a]",
    "laughs.yaml": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 60)),
    "merge.yaml": "model: {<<: 3}",
    "tag.yaml": f"model: !!python/object/apply:os.system ['touch {CANARY}']",
    "new_tag.yaml": f"model: !!python/object/new:subprocess.Popen [[touch, {CANARY}]]",
}


def tree() -> dict[str, tuple[int, int] | None]:
    """Every file and folder here, with the size and the time of what it holds."""
    states = ((path, path.stat()) for path in Path().rglob("*"))
    return {str(path): None if path.is_dir() else (state.st_size, state.st_mtime_ns) for path, state in states}


def refused(args: list[str], *names: str) -> str:
    """The one line that a command says before it exits; ``names`` are what it must name, any one of them."""
    before = tree()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
        cli.main(args)
    assert done.value.code in (1, 2)
    said = err.getvalue()
    assert said.startswith(PREFIX)
    assert said.endswith("\n")
    assert len(said.splitlines()) == 1, said
    assert out.getvalue() == ""
    for unwanted in ("Traceback", "traceback", "<class", " object at 0x", "NoneType'"):
        assert unwanted not in said
    assert len(said) < 1000
    assert not names or any(name in said for name in names), said
    assert tree() == before
    return said.removeprefix(PREFIX)


def written(config: Any) -> str:
    """The config as a file, which is looked at like the others."""
    Path("hostile.yaml").write_text(yaml.safe_dump(config))
    return "hostile.yaml"


def nested(option: str, value: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with one option, written with dots, set to a value."""
    config = copy.deepcopy(recipe)
    *parents, last = option.split(".")
    place: Any = config
    for name in parents:
        place = place.setdefault(name, {})
        if "class_path" in place:
            place = place.setdefault("init_args", {})
    place[last] = value
    return config


def places(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value inside, with the keys and indices that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key), item
        yield from places(item, (*path, key))


def inside(config: Any, path: Place) -> Any:
    for key in path:
        config = config[key]
    return config


# ---- configs: a word, a type or a class that is wrong, anywhere in any recipe


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[dict[str, Any], str, str]:
    """A recipe, one key of which has another letter; the wrong key, and the one that is above it."""
    config = copy.deepcopy(RECIPES[draw(st.sampled_from(sorted(RECIPES)))])
    path, value = draw(st.sampled_from([(p, v) for p, v in places(config) if isinstance(p[-1], str)]))
    parent, key = inside(config, path[:-1]), str(path[-1])
    cut = draw(st.integers(0, len(key)))
    wrong = key[:cut] + draw(st.sampled_from(["x", "_", "é", "Ω", "-"])) + key[cut:]
    del parent[key]
    parent[wrong] = value
    above = [str(part) for part in path[:-1] if isinstance(part, str) and part != "init_args"]
    return config, wrong, above[-1] if above else wrong


@fuzz
@given(misspelt())
def test_a_misspelt_name_anywhere(case):
    config, wrong, above = case
    refused(["fit", "--config", written(config), *CPU], wrong, above)


WRONG: dict[type, list[Any]] = {
    int: ["abc", [[]], {"nonsense": 1}, True, 0.5, math.nan, math.inf],
    float: ["abc", [[]], {"nonsense": 1}, True],
    str: [[[]], {"nonsense": 1}, 0.5],
    list: ["abc", {"nonsense": 1}, 0.5, True],
    dict: ["abc", [[]], 0.5, True],
    bool: ["abc", [[]], 0.5],
}


@st.composite
def mistyped(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    """A recipe, one value of which is of another type; and the names on the way there."""
    config = copy.deepcopy(RECIPES[draw(st.sampled_from(sorted(RECIPES)))])
    found = [(p, v) for p, v in places(config) if v is not None and p != ("seed_everything",) and p[-1] != "init_args"]
    # diffusers' own arguments have no types here
    found = [(p, v) for p, v in found if p[:5] != ("model", "network", "init_args", "config", p[-1])]
    path, value = draw(st.sampled_from(found))
    wrong = draw(st.sampled_from(WRONG[type(value)]))
    assume((path[-1], wrong) != ("logger", True))  # which means the default one
    inside(config, path[:-1])[path[-1]] = wrong
    return config, [str(part) for part in path if isinstance(part, str)]


@fuzz
@given(mistyped())
def test_a_value_of_another_type_anywhere(case):
    config, names = case
    refused(["fit", "--config", written(config), *CPU], *names)


COMPONENTS = [
    *("model.network", "model.sde", "model.parameterization", "model.objective", "model.objective.times"),
    *("model.sampler", "model.optimizer", "model.lr_scheduler", "data"),
]
NO_CLASSES: list[Any] = [
    *("", "..", "3", "a b", "ünïcode.Ä", "nonsense.Nope", "diffusion_lightning", "diffusion_lightning.Nope"),
    *("diffusion_lightning.MLPP", "diffusion_lightning.commands.cli.main", "builtins.print", "builtins.int", "this"),
    *("os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "shutil.rmtree", "torch.load"),
    *("pathlib.Path", "lightning.pytorch.Trainer", "diffusion_lightning.ScoreModule"),
    *("diffusion_lightning.SampleGrid", "diffusion_lightning.Predictor"),
]
DANGEROUS = [
    {"class_path": "os.system", "init_args": {"command": f"touch {CANARY}"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", CANARY]}},
    {"class_path": "subprocess.check_call", "dict_kwargs": {"args": ["touch", CANARY]}},
    {"class_path": "builtins.exec", "init_args": {"source": f"open('{CANARY}', 'w')"}},
    {"class_path": "builtins.open", "init_args": {"file": CANARY, "mode": "w"}},
    {"class_path": "os.mkdir", "init_args": {"path": CANARY}},
    {"class_path": "numpy.save", "init_args": {"file": CANARY, "arr": [1]}},
    {"class_path": "torch.save", "init_args": {"obj": 1, "f": CANARY}},
]


@fuzz
@given(st.sampled_from(COMPONENTS), st.sampled_from([{"class_path": path} for path in NO_CLASSES] + DANGEROUS))
def test_a_class_of_another_kind(component, value):
    said = refused(["fit", "--config", written(nested(component, value, RECIPES["quickstart"])), *CPU])
    assert component.split(".")[-1] in said


@pytest.mark.parametrize("value", DANGEROUS, ids=lambda value: value["class_path"])
@pytest.mark.parametrize("component", ["model.optimizer", "model.lr_scheduler", "model.guidance"])
def test_what_makes_an_optimizer_runs_no_foreign_code(component, value):
    """Its type is a function's, and any function could be named."""
    assert component in refused(["fit", "--config", written(nested(component, value, RECIPES["quickstart"])), *CPU])


def test_an_argument_without_a_type_builds_nothing():
    """The classes of other packages have arguments that take anything."""
    for value in DANGEROUS[1], {"class_path": "pathlib.Path.touch"}:
        network = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2, "device": value}}
        refused(["fit", "--config", written(nested("model.network", network, RECIPES["quickstart"])), *CPU])


@pytest.mark.parametrize("section", ["model", "data", "model.network", "model.sde", "model.parameterization"])
def test_a_section_that_is_missing(section):
    config = copy.deepcopy(RECIPES["quickstart"])
    *parents, last = section.split(".")
    del inside(config, tuple(parents))[last]
    refused(["fit", "--config", written(config), *CPU], last)


# ---- configs: values out of range

NAN, INF = math.nan, math.inf
COUNT = [-1, 0, 0.5, 1.5, NAN, INF, True, None, -(10**30)]
POSITIVE = [-1, -1e-9, 0, NAN, INF, -INF, True, None]

RANGES: dict[str, dict[str, list[Any]]] = {
    "quickstart": {
        "seed_everything": [-1, 2**32, 0.5, NAN, None, True, False],
        "run_name": ["", ".", "..", "../x", "/x", "a/../../x", "a\0b", "a\nb", 3],
        "ckpt_path": ["", ".", "nonsense", "last", "best", "hpc", "registry", "a\0b", 3, "good.ckpt/x"],
        "trainer.max_epochs": [-5, -2, 1.5, NAN, INF, True],
        "trainer.max_steps": [-5, 1.5, NAN],
        "trainer.min_epochs": [-1, NAN],
        "trainer.precision": [12, "abc", NAN],
        "trainer.devices": [0, -3, 1.5, "abc"],
        "trainer.accelerator": ["abacus", 3],
        "trainer.strategy": ["abc"],
        "trainer.num_nodes": [0, -1, "abc"],
        "trainer.gradient_clip_val": [-1, NAN, "abc"],
        "trainer.gradient_clip_algorithm": ["abc"],
        "trainer.limit_train_batches": [-1, 1.5, NAN, INF],
        "trainer.limit_val_batches": [-1, 7.5, NAN],
        "trainer.overfit_batches": [-1, 3.5, NAN],
        "trainer.log_every_n_steps": [-1, 1.5],
        "trainer.check_val_every_n_epoch": [0, -1, 1.5],
        "trainer.accumulate_grad_batches": [0, -1, 1.5, None],
        "trainer.num_sanity_val_steps": [-5, 1.5],
        "trainer.reload_dataloaders_every_n_epochs": [-1],
        "trainer.barebones": [True],
        "trainer": [None, 3, []],
        "model.ema_decay": [-1, 1.5, NAN, INF, None, True],
        "model.clip_norm": [-1, 0, NAN, True],
        "model.network.in_channels": COUNT,
        "model.network.num_res_blocks": COUNT,
        "model.network.num_heads": [*COUNT, 3],
        "model.network.embed_dim": [*COUNT, 5],
        "model.network.patch_size": COUNT,
        "model.network.num_classes": [-1, 0, 1.5, NAN, True],
        "model.network.dropout": [-1, 1, NAN, INF, True, None],
        "model.network.time_scale": [-1, 0, NAN, INF, True],
        "model.network.time_embedding": ["abc", 3, None],
        "model.network.channels": [[], [0], [-1], [1.5], [NAN], [True], [None], None, 3],
        "model.network.attention_levels": [[2], [-1], [0.5], [NAN], None, 3],
        "model.sde.sigma_min": [*POSITIVE, 90],
        "model.sde.sigma_max": [*POSITIVE, 1e-9],
        "model.sde.rho": [-1, 0, 0.5, NAN, INF, None],
        "model.parameterization.sigma_data": POSITIVE,
        "model.objective.sigma_data": POSITIVE,
        "model.objective.weighting": ["abc", 3, None],
        "model.objective.reduction": ["abc", True, None],
        "model.objective.times.mean": [NAN, INF, None, True],
        "model.objective.times.std": POSITIVE,
        "model.sampler.steps": COUNT,
        "model.sampler.rho": [0, 0.5, NAN, INF, None],
        "model.sampler.churn": [-1, NAN, INF, None],
        "model.sampler.t_min": [-1, 0, 1e-9, 100, NAN, INF, True],
        "model.optimizer.lr": [-1, NAN, None, True],
        "model.lr_scheduler.end_factor": [-1, 2, None],
        "model.lr_scheduler.total_steps": [0, -1, 0.5, True],
        "data.batch_size": COUNT,
        "data.num_predict": COUNT,
        "data.num_workers": [-1, 0.5, NAN, True, None],
    },
    "points_ddpm": {
        "model.network.hidden": [[], [0], [-1], [1.5], [NAN], None],
        "model.sde.num_steps": [1, *COUNT],
        "model.sde.beta_start": [*POSITIVE, 1],
        "model.sde.beta_end": [*POSITIVE, 1],
        "model.sde.schedule": ["abc", 3, None],
        "model.optimizer.betas": [[2, 3], [NAN, 0.5], [0.9], 3, None],
        "data.distribution": ["abc", 3, None],
        "data.num_points": COUNT,
        "data.num_held_out": COUNT,
    },
}
CASES = [(recipe, option, value) for recipe, all_ in RANGES.items() for option, vs in all_.items() for value in vs]


@settings(fuzz, max_examples=40)
@given(st.sampled_from(CASES))
def test_a_value_out_of_its_range(case):
    recipe, option, value = case
    section, name = option.split(".")[0], option.split(".")[-1]
    also = ("model.optimizer",) if section == "model" else ("gpu",) if name == "accelerator" else ()
    refused(["fit", *CPU[4:], "--config", written(nested(option, value, RECIPES[recipe]))], name, *also)


# ---- files and command lines


@pytest.mark.parametrize("name", [*FILES, "folder", "nowhere.yaml", "good.ckpt"])
def test_a_file_that_is_no_config(name):
    assert name in refused(["fit", "--config", QUICKSTART, "--config", name])


FIT = ["fit", "--config", QUICKSTART, *CPU]
SAMPLE = ["sample", "--ckpt_path", "good.ckpt", "--quiet"]
LIKELIHOOD = ["likelihood", "--ckpt_path", "good.ckpt", "--data", "Points", "--quiet"]
NUMBERS = ["0", "-1", "1.5", "nan", ".nan", ".inf", "true", "null", "[1]", "{a: 1}", "abc", ""]

LINES: list[tuple[list[str], str]] = [
    *(([command, *rest], command) for command in ("", "trian", "fît", "os.system") for rest in ([], FIT[1:])),
    (["fit", "fit", *FIT[1:]], "fit"),
    ([*FIT, "sample"], "sample"),
    (["--config", QUICKSTART], "subcommand"),
    (["fit", "--config"], "--config"),
    (["fit", "--config="], "config"),
    *(([*FIT, option, "3"], option) for option in ("--nonsense", "--trainer.max_epoch", "--é", "--m", "--")),
    *(([*FIT, f"--seed_everything={value}"], "seed_everything") for value in NUMBERS if value not in ("0", "true")),
    *(([*FIT, f"--model.sampler.steps={value}"], "steps") for value in NUMBERS),
    *(([*FIT, "--model.optimizer", path], "model.optimizer") for path in ("os.system", "builtins.print", "x.y")),
    *(([*FIT, "--ckpt_path", path], "ckpt_path") for path in ("", "x", "/", "..", "last", "best", "empty.yaml")),
    *((["sample", "--ckpt_path", path], path) for path in ("x", "/", "scalar.yaml")),
    *((["likelihood", "--data", "Points", "--ckpt_path", path], path) for path in ("x", "/", "scalar.yaml")),
    *(([command], "ckpt_path") for command in ("sample", "likelihood")),
    *(([*SAMPLE, "--num", value], "num") for value in NUMBERS),
    *(([*SAMPLE, "--batch_size", value], "batch_size") for value in NUMBERS),
    *(([*SAMPLE, "--seed", value], "seed") for value in NUMBERS if value not in ("0", "-1")),
    *(([*SAMPLE, "--seed", value], "seed") for value in ("99999999999999999999999",)),
    *(([*SAMPLE, "--labels", value], "labels") for value in ("[1]", "[]", "abc", "[nan]", "{a: 1}")),
    *(([*SAMPLE, "--output", value], "output") for value in ("", "x.mp4", "good.ckpt/x.png", "pictures")),
    *(([*SAMPLE, "--device", value], "device") for value in ("", "abacus", "cuda:99", "meta", "3")),
    *(([*SAMPLE, "--sampler", value], "sampler") for value in ("", "Hen", "VPSDE", "os.system", "3", "[]")),
    *(([*SAMPLE, "--sampler", "DDPM", "--sampler.steps", value], "steps") for value in NUMBERS),
    *(([*SAMPLE, option, "3"], option) for option in ("--nm", "--Num", "--é")),
    *(([*LIKELIHOOD, "--num", value], "num") for value in NUMBERS),
    *(([*LIKELIHOOD, "--batch_size", value], "batch_size") for value in NUMBERS),
    *(
        ([*LIKELIHOOD, f"--{name}", value], name)
        for name in ("rtol", "atol", "t_min")
        for value in NUMBERS
        if (name, value) not in (("t_min", "null"), ("rtol", "1.5"), ("atol", "1.5"))
    ),
    *(([*LIKELIHOOD, "--divergence", value], "divergence") for value in ("abc", "null", "3")),
    *(
        ([*LIKELIHOOD, "--data", value], "data")
        for value in ("null", "Pionts", "VPSDE", "os.system", "", "EmbeddedMNIST")
    ),
    (LIKELIHOOD[:3], "data"),
]


@settings(fuzz, max_examples=40)
@given(st.sampled_from(LINES))
def test_a_command_line_that_is_wrong(case):
    args, name = case
    refused(args, name)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["fit", "--config", "tag.yaml"], "tag.yaml"),
        (["fit", "--config", "binary.yaml"], "binary.yaml"),
        ([*FIT, "--trainer.max_epochs", "-5"], "max_epochs"),
        ([*FIT, "--model.optimizer", "os.system"], "os.system"),
        ([*SAMPLE, "--num", "0"], "num"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_a_process(environment, args, name):
    """What the process itself adds, such as warnings and notices, is not in the way."""
    before = tree()
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line != "Seed set to 0"]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(PREFIX)
    assert name in lines[0]
    assert tree() == before
