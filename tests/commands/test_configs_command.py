"""The configs that come with the package: in its wheel, found by ``--config``, listed and copied."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffusion_lightning
from diffusion_lightning.commands import cli, configs
from diffusion_lightning.commands.configs import find, folder, names, summary
from diffusion_lightning.commands.parser import OneLineParser

ROOT = Path(diffusion_lightning.__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Outside of the repository, in a folder of which nothing is the package's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parser() -> OneLineParser:
    parser = OneLineParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=1)
    parser.add_argument("--trainer", type=dict | None)
    parser.add_argument("--model", type=dict | None)
    parser.add_argument("--data", type=dict | None)
    return parser


def test_names_are_those_of_the_repository():
    assert folder() == ROOT / "configs"
    assert set(names()) == {path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert {"quickstart.yaml", "overlays/debug.yaml", "sweeps/quickstart.yaml"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_each_says_in_a_line_what_it_is(name):
    said = summary(find(name))
    assert 20 < len(said) <= configs.LONGEST + 2
    assert not said.startswith(("#", "pip", "lightning"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quickstart.yaml", "quickstart.yaml"),
        ("configs/quickstart.yaml", "quickstart.yaml"),
        ("overlays/debug.yaml", "overlays/debug.yaml"),
        ("configs/overlays/debug.yaml", "overlays/debug.yaml"),
        ("debug.yaml", None),
        ("quickstart", None),
        ("", None),
        (".", None),
        ("../pyproject.toml", None),
        ("overlays/../quickstart.yaml", None),
        ("/quickstart.yaml", None),
        ("trainer: {}\n" * 1000, None),
    ],
)
def test_a_name_means_a_config_of_the_package_or_none(name, meant):
    assert find(name) == (None if meant is None else ROOT / "configs" / meant)


@pytest.mark.parametrize("words", [["--config", "quickstart.yaml"], ["--config=configs/quickstart.yaml"]])
def test_where_there_is_no_such_file_the_packages_is_taken_and_a_line_says_so(parser, capsys, words):
    options = parser.parse_args(words)
    assert options.seed_everything == 0
    assert [str(path) for path in options.config] == [str(ROOT / "configs" / "quickstart.yaml")]
    given = words[-1].removeprefix("--config=")
    assert capsys.readouterr().err == (
        f"lightning: {given} is the package's, {ROOT / 'configs' / 'quickstart.yaml'}, since there is none here\n"
    )


def test_a_file_that_is_here_goes_before(parser, capsys):
    Path("quickstart.yaml").write_text("seed_everything: 7\n")
    assert parser.parse_args(["--config", "quickstart.yaml"]).seed_everything == 7
    assert capsys.readouterr().err == ""


def test_a_name_found_nowhere_is_an_error_that_says_where_to_look(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "quickstrat.yaml"])
    err = capsys.readouterr().err
    assert "File does not exist: " in err
    assert err.endswith("quickstrat.yaml' (lightning configs lists those that come with the package)\n")
    assert err.count("\n") == 1


def test_they_are_listed_without_torch(capsys):
    program = (
        "import sys; from diffusion_lightning.commands.configs import configs_command as run; run([])\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line.split()[0] for line in done.stdout.partition("\n\n")[0].splitlines()]
    assert shown == names()


def test_one_is_copied_and_never_over_another(capsys):
    cli.main(["configs", "quickstart.yaml"])
    assert Path("quickstart.yaml").read_bytes() == (ROOT / "configs" / "quickstart.yaml").read_bytes()
    Path("quickstart.yaml").write_text("mine")
    for name in ("quickstart.yaml", "sweeps/quickstart.yaml"):
        with pytest.raises(SystemExit):
            cli.main(["configs", name])
        assert "lightning: error: quickstart.yaml is here already and is kept: " in capsys.readouterr().err
    assert Path("quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["quickstrat.yaml"], "'quickstrat.yaml' is no config of the package: must be one of cifar10.yaml, "),
        (["--copy"], "lightning: error: unknown option --copy"),
    ],
)
def test_what_cannot_be_copied_is_one_line(elsewhere, capsys, words, line):
    with pytest.raises(SystemExit):
        cli.main(["configs", *words])
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package as it is installed without -e, built from a copy of the repository."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("diffusion_lightning", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(target), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(target.glob("*.whl"))


def test_the_wheel_holds_all_of_them_and_is_of_this_version(wheel):
    assert wheel.name.startswith(f"diffusion_lightning-{diffusion_lightning.__version__}-")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.removeprefix("diffusion_lightning/configs/") for name in inside if name.endswith(".yaml")} == set(
        names()
    )


def test_an_installed_package_has_its_own(wheel, elsewhere):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(elsewhere / "site")
    program = (
        "from diffusion_lightning.commands.configs import configs_command, find\n"
        "print(find('overlays/debug.yaml')); configs_command(['quickstart.yaml'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(elsewhere / "site")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(elsewhere / "site/diffusion_lightning/configs/overlays/debug.yaml")
    assert Path("quickstart.yaml").read_bytes() == (ROOT / "configs" / "quickstart.yaml").read_bytes()
