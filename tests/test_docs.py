"""The site: it builds without a warning, nothing in it is missing or stale, and what its pages show works."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import test_sde
import torch
import yaml

import diffusion_lightning
from diffusion_lightning import SDE, VPSDE, Denoiser, GaussianMixtureDenoiser, ScoreModule, __version__, cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.fixture(autouse=True)
def hooks_and_examples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "hooks")
    monkeypatch.syspath_prepend(DOCS / "examples")


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    settings = {**environment, "NO_MKDOCS_2_WARNING": "1"}  # the theme's, of a release of mkdocs that is not used
    done = subprocess.run(build, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


class Html(HTMLParser):
    """What a page links to and loads, the places in it that can be linked to, and its text outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.text, self.codes = "", [""]
        self._open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.add(given["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.add(given["src"])
        if tag in ("code", "script", "style", "math"):
            self._open.append(tag)
            self.codes.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.text += data
        elif self._open[-1] == "code":
            self.codes[-1] += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path.relative_to(site): Html(path) for path in sorted(site.rglob("*.html"))}


def test_every_link_leads_somewhere(site, pages):
    count = 0
    for name, page in pages.items():
        if name == Path("404.html"):  # its links are those of a site at the root of a host
            continue
        for link in page.links | page.loads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (site / name).parent / unquote(url.path) if url.path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            if url.fragment and target.suffix == ".html":
                there = pages[target.resolve().relative_to(site.resolve())]
                assert unquote(url.fragment) in there.ids | {"__toc", "__drawer", "__search"}, f"{name}: {link}"
            count += 1
    assert count > 1000


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).netloc], name
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", styles)
    assert "fonts.googleapis" not in "".join((site / name).read_text() for name in pages)


def test_every_page_is_in_the_navigation(site, pages):
    home = {unquote(urlsplit(link).path) for link in pages[Path("index.html")].links}
    assert {name.as_posix() for name in pages} - home <= {"404.html"}


def test_every_command_has_its_options(pages):
    from commands_page import names, options, parsers, summary

    assert list(parsers()) == summary(cli.USAGE)
    assert set(parsers()) == {"fit", "validate", "test", "predict", *cli.COMMANDS}
    page = pages[Path("commands.html")]
    shown = {code.strip() for code in page.codes}
    count = 0
    for command, parser in parsers().items():
        assert command in page.ids
        for action in options(parser):
            assert set(names(action)) <= shown, f"{command}: {names(action)}"
            count += 1
    assert count > 200  # those of Lightning's trainer four times
    for cls in ("VPSDE", "DPMSolverPlusPlus", "UNet", "ImageFolder"):
        assert cls in shown


def test_a_default_and_a_type_are_those_of_the_parser(site):
    table = re.sub(r"<[^>]+>", "|", (site / "commands.html").read_text())
    cells = [cell.strip() for cell in table.split("|") if cell.strip()]
    at = {
        name: cells.index(name) for name in ("--snr", "--scale", "--model.ema_decay", "--divergence") if name in cells
    }
    assert cells[at["--scale"] :][1:4] == ["int", "1", "The side of the square that a pixel of pictures becomes."]
    assert cells[at["--model.ema_decay"] :][1:3] == ["float", "0.9999"]
    assert cells[at["--divergence"] :][1:5] == ["hutchinson", "or", "exact", "hutchinson"]


def test_every_public_name_is_in_the_reference(pages):
    anchors = {name: f"diffusion_lightning.{module}.{name}" for name, module in diffusion_lightning._MODULE_OF.items()}
    assert anchors.keys() == set(diffusion_lightning.__all__)
    linked = {link.split("#")[-1] for link in pages[Path("reference/index.html")].links}
    for name, anchor in anchors.items():
        assert anchor in pages[Path("reference") / f"{diffusion_lightning._MODULE_OF[name]}.html"].ids
        assert anchor in linked


RAW = (*(":math:", ".. math", ":class:", ":meth:", ":func:", ":mod:"), *("``", "\\alpha", "\\mathrm", "$$", "====="))


def test_formulas_and_roles_are_shown_and_not_spelt(site, pages):
    for name, page in pages.items():
        if name.name != "CONTRIBUTING.html":  # which tells how they are spelt
            for raw in RAW:
                assert raw not in page.text, f"{name}: {raw} in …{page.text[page.text.find(raw) - 60 :][:120]}…"
    for name in (
        "concepts",
        "watching",
        "reference/sde",
        "reference/samplers",
        "reference/objective",
        "reference/training.ema",
    ):
        assert "<math" in (site / f"{name}.html").read_text(), name


def test_docstrings_become_markdown():
    from docstrings import to_markdown

    assert to_markdown("x :math:`\\alpha x_0` y") == "x $\\alpha x_0$ y"
    assert to_markdown("a\n\n.. math:: a = b,\n          \\qquad c\n\nd") == "a\n\n$$\na = b, \\qquad c\n$$\n\nd"
    assert to_markdown("see :class:`VPSDE`") == "see [`VPSDE`][diffusion_lightning.sde.VPSDE]"
    assert to_markdown(":func:`~diffusion_lightning.sde.expand`") == "`expand`"
    assert to_markdown("``steps`` − 1") == "`steps` − 1"
    assert to_markdown("``heart``\n    A shape.") == "`heart`\n:   A shape."
    headed = "=== ====\na   b\n=== ====\nc   d | e\nσ̃²  f\n    g\n=== ===="
    assert to_markdown(headed) == "| a | b |\n| --- | --- |\n| c | d \\| e |\n| σ̃² | f g |"
    assert to_markdown("== ==\na  b\n== ==") == "|  |  |\n| --- | --- |\n| a | b |"


# ---- the explained config


def test_the_page_quotes_every_line_of_the_config():
    from explained_config import quote

    shown = re.findall(r"```yaml\n(.*?)\n```", quote((DOCS / "configs.md").read_text(), ROOT), re.DOTALL)
    lines = [line for block in shown for line in block.splitlines()]
    assert set((ROOT / "configs" / "quickstart.yaml").read_text().splitlines()) <= set(lines)


def test_a_line_without_explanation_fails_the_build(tmp_path):
    from explained_config import quote
    from mkdocs.exceptions import PluginError

    (tmp_path / "a.yaml").write_text("# about\na: 1\nb:\n  - c: 2 # two\n    d: 3\n")
    parts = ["<!-- a.yaml: a -->", "<!-- a.yaml: b b.0.c -->", "<!-- a.yaml: b.0.d -->"]
    whole = quote("\n\n".join(parts), tmp_path)
    assert whole == "```yaml\n# about\na: 1\n```\n\n```yaml\nb:\n  - c: 2 # two\n```\n\n```yaml\n    d: 3\n```"
    with pytest.raises(PluginError, match="line 5: 'd: 3' is not explained"):
        quote("\n\n".join(parts[:2]), tmp_path)
    with pytest.raises(PluginError, match="has no z, which is explained"):
        quote("<!-- a.yaml: z -->", tmp_path)
    with pytest.raises(PluginError, match=r"line 5: is quoted twice, for b\.0\.d too"):
        quote("\n\n".join([*parts, parts[2]]), tmp_path)


# ---- what the pages say to type


def shell(page: Path) -> Iterator[list[str]]:
    """The words of every `lightning` command in a page's shell code after the program's name."""
    for block in page.read_text().split("```sh\n")[1:]:
        for line in block.split("```")[0].replace("\\\n", " ").splitlines():
            if " fit " in line or re.search("lightning (sample|likelihood|interpolate)", line):
                yield shlex.split(line.split("lightning ", 1)[1], comments=True)


COMMANDS = [(page.stem, words) for page in PAGES if page.stem not in ("scaling", "systems") for words in shell(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(COMMANDS)])
def test_a_command_on_a_page_is_one_that_the_parser_takes(page, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if words[0] != "fit":
        from commands_page import parsers

        parser = parsers()[words[0]]
        assert parser is not None
        parser.parse_args(words[1:])
        return
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    words = [str(config) if word.startswith("runs/") else word for word in words if word != "--print_config"]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--print_config"])
    assert done.value.code in (0, None), capsys.readouterr().err


def test_the_pages_have_commands():
    assert len(COMMANDS) > 12


OF_OTHERS = ("--trainer.strategy", "--model.optimizer", "--model.lr_scheduler")
"""Options whose classes are Lightning's and torch's, and so are the options below them."""


def test_every_option_that_a_page_names_exists():
    from commands_page import COMPONENTS, names, options, parsers
    from jsonargparse import ArgumentParser

    of_fit = {name for action in options(parsers()["fit"]) for name in names(action)}
    of_classes = set()
    for name in diffusion_lightning.__all__:
        value = getattr(diffusion_lightning, name)
        if isinstance(value, type) and name != "ScoreModule":
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(value, fail_untyped=False)
            of_classes |= {action.dest for action in options(parser)}
    found = 0
    for page in (ROOT / "README.md", *PAGES):
        text = re.sub(r"```text.*?```", "", page.read_text(), flags=re.DOTALL)  # with a typo that is answered
        for option in re.findall(r"--(?:trainer|model|data)\.[\w.]+\w", text):
            parts = option.split(".")
            known = option in of_fit or (parts[0] == "--data" and parts[1] in of_classes)
            known |= ".".join(parts[:2]) in of_fit and parts[-1] in of_classes
            known |= ".".join(parts[:2]) in OF_OTHERS
            known |= parts[-1] == "help" and ".".join(parts[:-1]) in COMPONENTS
            assert known, f"{page.name}: {option}"
            found += 1
    assert found > 60


def test_the_snippets_of_the_concepts_run(capsys, monkeypatch, tmp_path):
    """One after the other, as the page says; and what it says of their results."""
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("runs/quickstart/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "data" / "checkpoints" / "version_0.2.0.ckpt", checkpoint)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "concepts.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, "concepts.md", "exec"), namespace)
    assert len(blocks) > 10
    right, samples = namespace["right"], namespace["samples"]
    assert right.float().mean().item() == pytest.approx(0.7, abs=0.06)  # 4 standard errors
    assert samples[right].std(0).mean().item() == pytest.approx(0.2, rel=0.1)
    assert namespace["fast"].nfe == 25  # twenty steps, five of them in the interval of the guidance
    assert namespace["ema"].shadow_params[0].item() == pytest.approx(90, abs=1)
    assert namespace["digits"].shape == (4, 1, 8, 8)
    module, x, t = ScoreModule.load_from_checkpoint(checkpoint), namespace["x"], namespace["t"]
    with module.ema_weights():
        assert torch.equal(namespace["score"], module.denoiser.score(x, t))
    assert not torch.equal(namespace["score"], module.denoiser.score(x, t))


# ---- the examples


@pytest.fixture
def own_process() -> SDE:
    from log_snr import LinearLogSNR

    return LinearLogSNR()


def test_the_process_has_its_closed_form(own_process):
    """f = ½λ'σ² and g² = −λ'σ², from α² = sigmoid(λ) and σ² = sigmoid(−λ), with λ' = −20."""
    t = torch.linspace(own_process.t_min, own_process.T, 101, dtype=torch.float64)
    alpha, sigma = own_process.alpha(t), own_process.sigma(t)
    torch.testing.assert_close((alpha**2 / sigma**2).log(), 10 - 20 * t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(own_process.drift_rate(t), -10 * sigma**2)
    torch.testing.assert_close(own_process.diffusion(t) ** 2, 20 * sigma**2)
    torch.testing.assert_close(own_process.time_at(sigma / alpha), t)
    with pytest.raises(ValueError, match=r"first=1.0, last=2.0: need last < first"):
        type(own_process)(1.0, 2.0)


@pytest.mark.parametrize(
    "check",
    [
        test_sde.test_drift_rate_is_the_logarithmic_derivative_of_alpha,
        test_sde.test_diffusion_is_what_the_variance_grows_by,
        test_sde.test_time_at_inverts_the_noise_level,
        test_sde.test_transition_solves_the_sde_between_two_times,
        test_sde.test_transitions_compose,
        test_sde.test_timesteps_run_from_the_last_time_to_the_first,
        test_sde.test_uniform_times_fill_the_range_or_hit_each_time_of_the_grid_equally,
        test_sde.test_times_are_checked,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_the_process_passes_the_checks_of_any_process(own_process, check):
    check(own_process, *([18] if "timesteps" in check.__name__ else []))


def test_the_sampler_follows_the_exact_flow_of_a_gaussian():
    """x_T goes to αμ + (x_T − α_T μ)·√(v_t/v_T), v = α²s² + σ²; the error is a quarter with twice the steps."""
    from midpoint import Midpoint

    sde, mean, std = VPSDE(), torch.tensor([1.5, -0.7], dtype=torch.float64), 0.6
    denoiser = GaussianMixtureDenoiser(
        mean[None], torch.tensor([std], dtype=torch.float64), torch.ones(1, dtype=torch.float64), sde
    )
    x_T = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    alpha, variance = sde.alpha(ends), sde.alpha(ends) ** 2 * std**2 + sde.sigma(ends) ** 2
    exact = alpha[0] * mean + (x_T - alpha[1] * mean) * (variance[0] / variance[1]).sqrt()
    errors = []
    for steps in (100, 200, 400):
        sampler = Midpoint(steps)
        errors.append((sampler(denoiser, x_T.shape, x_T=x_T) - exact).abs().max().item())
        assert sampler.nfe == 2 * steps
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_discs_are_discs():
    from discs import Discs

    data = Discs(num_images=50)
    images, labels = data.train_images[list(range(50))]
    assert images.shape == (50, *data.shape)
    assert images.unique().tolist() == [0, 255]
    assert not labels.any()
    area = (images > 0).float().sum((1, 2, 3))
    assert ((area > 3.14 * 1.5**2) & (area < 3.14 * 4.5**2)).all()
    assert len(data.held_out_images) == 200
    assert not torch.equal(images[0], data.held_out_images[[0]][0][0])
    assert torch.equal(images, Discs(num_images=50).train_images[list(range(50))][0])


def test_the_spiral_is_one_and_its_sets_are_whole_batches():
    from spiral import Spiral

    data = Spiral(num_points=50, turns=1.5)
    points, labels = data.sets()[0][list(range(50))]
    distance = points.norm(dim=1)
    assert points.shape == (50, *data.shape)
    assert not labels.any()
    torch.testing.assert_close(points[:, 0], distance * (3 * torch.pi * distance).cos())
    torch.testing.assert_close(points[:, 1], distance * (3 * torch.pi * distance).sin())
    assert len(data.held_out) == 2000
    assert not torch.equal(data.held_out[:50], points)


def test_points_of_ones_own_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs=1", "--trainer.logger=null", "--trainer.enable_progress_bar=false"]
    small = ["--data.num_points=64", "--data.batch_size=32", "--model.sampler=DDIM", "--model.sampler.steps=2"]
    config = str(ROOT / "configs" / "points_ddpm.yaml")
    cli.main(["fit", "--config", config, "--data", "spiral.Spiral", *small, *short, "--trainer.accelerator=cpu"])
    folder = tmp_path / "runs" / "points_ddpm" / "version_0"
    assert (folder / "field" / "epoch=0000.png").is_file()
    assert "sliced_wasserstein@2000" in (folder / "metrics.csv").read_text()


def test_the_weighting_has_its_closed_form():
    """1/λ = 1/SNR + 1/γ; of a denoiser that is wrong by 1 everywhere, the loss is the weight itself."""
    from soft_min_snr import SoftMinSNR

    sde, objective = VPSDE(), SoftMinSNR(gamma=3.0, reduction="mean")
    t = torch.linspace(sde.t_min, sde.T, 20, dtype=torch.float64)
    snr = (sde.alpha(t) / sde.sigma(t)) ** 2
    torch.testing.assert_close(1 / objective.weight(sde, t), 1 / snr + 1 / 3)

    class Wrong(Denoiser):
        def denoise(self, x, t, **cond):
            return torch.zeros_like(x)

    losses = objective(Wrong(sde), torch.ones(20, 2, 4, 4).double(), drawn=(t, torch.zeros(20, 2, 4, 4)))
    torch.testing.assert_close(losses, 3 * snr / (3 + snr))
    with pytest.raises(ValueError, match="gamma=0: must be positive"):
        SoftMinSNR(gamma=0)


@pytest.fixture
def own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """One step of the run that the page shows, of all its parts together."""
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    small = ["--data.batch_size", "4", "--data.num_images", "8", "--trainer.log_every_n_steps", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    cli.main(["fit", "--config", str(DOCS / "examples" / "discs.yaml"), *short, *small, *quiet])
    return tmp_path / "runs" / "discs" / "version_0"


def test_a_run_of_ones_own_parts(own_run, capsys):
    module = ScoreModule.load_from_checkpoint(own_run / "checkpoints" / "last.ckpt")
    parts = (module.network, module.denoiser.sde, module.objective, module.sampler)
    assert [type(part).__name__ for part in parts] == ["PlainNetwork", "LinearLogSNR", "SoftMinSNR", "Midpoint"]
    assert module.shape == (1, 16, 16)
    assert (own_run / "samples" / "epoch=0000.png").is_file()
    last = str(own_run / "checkpoints" / "last.ckpt")
    cli.main(["sample", "--ckpt_path", last, "--num", "2", "--sampler", "midpoint.Midpoint", "--sampler.steps", "3"])
    assert "2 samples in" in capsys.readouterr().out
    assert Path("samples.png").is_file()


def test_the_page_has_every_name_that_is_logged(own_run):
    with open(own_run / "metrics.csv", newline="") as file:
        logged = set(next(csv.reader(file))) - {"step", "epoch"}
    assert len(logged) > 10
    page = (DOCS / "watching.md").read_text()
    assert {name for name in logged if f"`{name}`" not in page} == set()


def test_a_network_of_ones_own_is_told_the_time():
    from plain_network import PlainNetwork

    torch.manual_seed(0)
    network, x = PlainNetwork(width=8, depth=2), torch.zeros(2, 1, 9, 7)
    output = network(x, torch.tensor([0.1, 0.9]))
    assert output.shape == x.shape
    assert not torch.allclose(output[0], output[1])


@pytest.mark.parametrize("path", sorted((DOCS / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_as_short_as_the_page_says_and_on_it(path, site):
    """Under 30 lines of code: without blank lines and docstrings."""
    code = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text())
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    shown = unescape(re.sub(r"<[^>]+>", "", (site / "adding.html").read_text()))
    assert path.read_text().strip() in shown


# ---- what goes with them


def test_citation_and_changes_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"message", "title", "authors", "license", "type"} <= citation.keys()
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", citation["version"]]


def test_the_workflow_runs_what_is_there():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in lines
    paths = [word for line in lines for word in line.split() if re.match(r"(tests|configs)/", word)]
    assert len(paths) > 4
    assert [path for path in paths if not (ROOT / path).exists()] == []
    pythons = {jobs["all"]["steps"][1]["with"]["python-version"], *jobs["versions"]["strategy"]["matrix"]["python"]}
    assert pythons == {"3.10", "3.11", "3.12", "3.13"}


def test_the_hooks_before_a_commit_are_tools_of_the_tests():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language"} <= hook.keys()
        assert shutil.which(hook["entry"].split()[0]), hook["entry"]


@pytest.mark.parametrize("form", ["bug", "question"])
def test_an_issue_form_has_what_github_asks_for(form):
    content = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= content.keys() <= {"name", "description", "title", "labels", "body"}
    fields = [item for item in content["body"] if item["type"] != "markdown"]
    assert {item["type"] for item in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    for item in fields:
        assert re.fullmatch(r"[\w-]+", item["id"])
        assert item["attributes"]["label"]
    names = [item["id"] for item in fields]
    assert len(set(names)) == len(names)
    assert any(item.get("validations", {}).get("required") for item in fields)
