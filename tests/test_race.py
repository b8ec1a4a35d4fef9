"""The race of benchmarks/quality.py: minutes as steps, parts, each one's best sampler, like beside like; its page."""

import json
import sys
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Twelve digits of noise in torchvision's layout."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(12, dtype=np.uint8) % 10)):
            head = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return str(tmp_path)


def tiny(**attributes: Any) -> Any:
    """A peer whose network is one matrix, which an image goes through twice to be drawn."""
    from systems.peer import Peer

    class Tiny(Peer):
        name = settings = "tiny"
        batch_size = 2
        is_scheduled = False

        def set_up(self) -> None:
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
            self.rate = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=self.steps)

        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            noise = torch.randn(len(images), 1, 28, 28)
            return (self.network(images / 255 + noise) - labels.view(-1, 1, 1, 1)).square().mean()

        def update_average(self) -> None:
            pass

        def averaged(self) -> nn.Module:
            return self.network

        @classmethod
        def model(cls) -> nn.Module:
            return nn.Linear(28, 28)

        @classmethod
        def samplers(cls) -> dict[str, int]:
            return {"twice": 2}

        @classmethod
        def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
            x = torch.zeros(num, 1, 28, 28) if labels is None else labels.view(-1, 1, 1, 1).expand(-1, 1, 28, 28) * 1.0
            for _ in range(how):
                x = model(x)
            return x

    for name, value in attributes.items():
        setattr(Tiny, name, value)
    return Tiny


def until(last: int, path: Path) -> Any:
    """Trains up to so many steps, and saves them."""

    def watch(steps: int, save: Any) -> bool:
        if steps == last:
            save(path)
        return steps < last

    return watch


@pytest.mark.parametrize("by_our_recipe", [False, True])
def test_a_training_in_parts_is_the_training_in_one(root: str, tmp_path: Path, by_our_recipe: bool) -> None:
    system = tiny(by_our_recipe=by_our_recipe)
    torch.manual_seed(0)
    system(root, 8).train(until(6, tmp_path / "whole"), tmp_path)
    torch.manual_seed(0)
    system(root, 8).train(until(2, tmp_path / "first"), tmp_path)
    torch.manual_seed(1)  # of another process, which has drawn something else
    system(root, 8).train(until(6, tmp_path / "rest"), tmp_path, tmp_path / "first")
    whole, rest, first = (torch.load(tmp_path / name)["averaged"] for name in ("whole", "rest", "first"))
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert not torch.equal(whole["weight"], first["weight"])


def test_our_recipe_of_a_peer_is_that_of_the_config(root: str) -> None:
    import yaml

    peer = tiny(by_our_recipe=True)(root, 50)
    model = yaml.safe_load((BENCHMARKS.parent / "configs" / "mnist.yaml").read_text())["model"]
    assert type(peer.optimizer).__name__ == model["optimizer"]["class_path"].rsplit(".", 1)[1]
    assert peer.optimizer.param_groups[0]["lr"] == model["optimizer"]["init_args"]["lr"]
    assert peer.average.decay == model["ema_decay"]
    for _ in range(50):
        peer.step()
    end = model["optimizer"]["init_args"]["lr"] * model["lr_scheduler"]["init_args"]["end_factor"]
    assert peer.optimizer.param_groups[0]["lr"] == pytest.approx(end)


def test_evaluations_of_a_sample_are_counted(root: str, tmp_path: Path) -> None:
    system = tiny()
    system(root, 1).train(until(1, tmp_path / "saved"), tmp_path)
    samples, evaluations = system.sample(tmp_path / "saved", 5, 2, "twice")
    assert samples.shape == (5, 1, 28, 28)
    assert evaluations == 2
    asked, _ = system.sample(tmp_path / "saved", 3, 2, "twice", torch.tensor([4, 4, 9]))
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[1], asked[2])


def test_a_minute_is_as_many_steps_as_it_has_beside_ours() -> None:
    from pace import rates, steps_in

    kept = {"ours": [10.0, 30.0, 20.0], "ratios": {"slow": [0.4, 0.6, 0.5, 9.0, 0.1], "fast": [3.0]}}
    assert rates(kept) == {"ours": 20, "slow": 10, "fast": 60}
    assert steps_in(1.25, 10) == 750
    assert steps_in(0.001, 10) == 1


def test_a_turn_is_as_long_as_it_was_told_and_its_speed_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import pace

    halves = iter(range(100))  # at each look at the clock half a second more
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: next(halves) / 2))
    here, there = Pipe()
    for told in (4, 9, 0):
        here.send(told)
    watch = pace.Turns(there)
    steps = 1
    while watch(steps, print):
        steps += 1
    # two steps a second: from the fifth one eight in the first turn, eighteen in the second
    assert steps == 5 + 8 + 18
    assert (here.recv(), here.recv()) == (2, 2)
    assert not here.poll()


def test_a_system_is_timed_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pace

    speeds = {"ours": iter([1.0, 10.0, 12.0, 10.0, 5.0]), "azula": iter([1.0, 20.0, 10.0])}  # each one's first warms up

    class Contestant:
        """One that is as fast as it is said to be."""

        def __init__(self, name: str, *_: Any) -> None:
            self.turn = lambda seconds: next(speeds[name])

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(pace, "_Contestant", Contestant)
    measured = pace.measure(tmp_path / "pace.json", ["ours", "azula"], "root", threads=1, seconds=1, turns=2)
    assert measured == {"ours": 11, "azula": 22}  # twice as fast beside it, on a machine that had slowed down
    assert pace.measure(tmp_path / "pace.json", ["azula"], "root", threads=1, seconds=1, turns=2) == measured
    with pytest.raises(SystemExit, match=r"--threads 2: .* was measured with 1: give another --folder"):
        pace.measure(tmp_path / "pace.json", ["azula"], "root", threads=2, seconds=1, turns=2)


def test_marks_are_shares_of_the_minutes_and_never_the_same_step() -> None:
    from race import marks

    assert marks(10, 2) == [150, 300, 600, 1200]
    assert marks(0.001, 10) == [1, 2, 3, 4]


def test_a_race_goes_on_with_the_part_that_was_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import race

    parts = []

    def alone(work: Any, *given: Any) -> None:
        _, _, planned, until, start, path, _ = given
        parts.append((planned, until, start and start.name, path.name))
        race.finished(path).write_text("{}")

    monkeypatch.setattr(race, "alone", alone)
    paths = race.of_folder(tmp_path)
    race.finished(paths[0]).write_text("{}")
    paths[1].touch()  # saved, but not said to be whole
    race.train("azula", "root", [10, 20, 40, 80], 80, 1, paths)
    assert parts == [(80, 20, "0.pt", "1.pt"), (80, 40, "1.pt", "2.pt"), (80, 80, "2.pt", "3.pt")]
    race.train("azula", "root", [10, 20, 40, 80], 80, 1, paths)
    assert len(parts) == 3


def test_best_sampler_is_that_of_the_lowest_fid_of_those_that_are_allowed() -> None:
    from judging import best

    rows = {"long": (51, 1.0), "right": (50, 2.0), "short": (20, 3.0)}
    tried = {name: {"evaluations": evaluations, "fid": value} for name, (evaluations, value) in rows.items()}
    assert best(tried, 50) == "right"
    assert best(tried, 1000) == "long"
    with pytest.raises(SystemExit, match="of long, right, short none needs at most 10 evaluations"):
        best(tried, 10)


def test_what_was_judged_otherwise_is_judged_again(tmp_path: Path) -> None:
    from judging import KNOWN, NEWEST, is_judged, samplers_tried

    path = tmp_path / "3.pt"
    assert not is_judged(path, 1000)
    path.with_suffix(".json").write_text(json.dumps({"fid": 2.15, "nfe": 8}))  # as races once left it
    assert not is_judged(path, 1000)
    for fids, judged in (({"older": 1.0}, False), (dict.fromkeys(KNOWN, 1.0), True)):
        path.with_suffix(".json").write_text(json.dumps({"fid": fids, "samples": 1000}))
        assert is_judged(path, 1000) == judged
    assert not is_judged(path, 500)
    tried = tmp_path / "samplers.json"
    assert samplers_tried(tried) == {}
    for feature, found in (("older", {}), (NEWEST, {"feature": NEWEST, "best": "Heun"})):
        tried.write_text(json.dumps({"feature": feature, "best": "Heun"}))
        assert samplers_tried(tried) == found


def test_seconds_of_drawing_are_compared_turn_by_turn() -> None:
    from judging import over

    assert over({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 3


def test_real_digits_are_measured(root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from judging import KNOWN, measure

    from diffusion_lightning.data.mnist import EmbeddedMNIST

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the reference is noise here
    images, labels = EmbeddedMNIST().load_images()[1][list(range(40))]
    found = measure(root, images, asked=labels)
    assert set(found["fid"]) == set(KNOWN)
    assert all(value > 100 for value in found["fid"].values())
    assert found["legible"] > 0.9
    assert found["agreement"] > 0.9
    assert measure(root, images, asked=(labels + 1) % 10)["agreement"] < 0.1
    assert "agreement" not in measure(root, images)


def test_a_system_trains_until_it_is_as_good() -> None:
    from until import first_reached, lengths, rival

    assert lengths(10, 60, is_scheduled=True) == [20, 40, 60]
    assert lengths(10, 32, is_scheduled=False) == [15, 20, 25, 30, 32]
    assert lengths(10, 5, is_scheduled=True) == []
    at = [(5.0, 9.0), (10.0, 4.0), (20.0, 3.0), (40.0, 3.5)]
    assert first_reached(at, 4.0) == 10
    assert first_reached(at, 3.2) == 20
    assert first_reached(at, 2.0) is None
    assert (rival("azula-our-training"), rival("azula-classes")) == ("ours-without-classes", "ours")


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_what_trains_on_is_one_training_unless_its_rate_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_scheduled: bool
) -> None:
    import judging
    import race
    import until

    parts, worth = [], {15: 8.0, 20: 7.0, 25: 5.0, 40: 4.0}

    def alone(work: Any, *given: Any) -> None:
        if work is race.train_part:
            _, _, planned, last, start, path, _ = given
            parts.append((planned, last, start and start.name))
            race.finished(path).write_text("{}")
        else:
            leave(given[2], worth[int(given[2].stem)])

    def leave(path: Path, value: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"samples": 100, "fid": {**dict.fromkeys(judging.KNOWN, 0.0), judging.NEWEST: value}}
        path.with_suffix(".json").write_text(json.dumps(found))

    folders = {name: tmp_path / name for name in ("ours-without-classes", "azula")}
    for name, fids in zip(folders, ([9, 7, 6, 3], [90, 60, 30, 9]), strict=True):
        for path, value in zip(race.of_folder(folders[name]), fids, strict=True):
            leave(path, value)
    (folders["azula"] / "samplers.json").write_text(json.dumps({"feature": judging.NEWEST, "best": "Heun"}))
    (folders["azula"] / "until").mkdir()
    monkeypatch.setattr(until, "alone", alone)
    monkeypatch.setattr(until, "system_class", lambda name: SimpleNamespace(is_scheduled=is_scheduled))
    for _ in range(2):  # what is there is not done again
        found = until.search("azula", "root", 10, 60, 1.0, 100, 1, folders)
        assert found["target"] == 6
        if is_scheduled:
            assert found["minutes"] == 40
            assert parts == [(1200, 1200, None), (2400, 2400, None)]
        else:
            assert found["minutes"] == 25
            assert parts == [(900, 900, "3.pt"), (1200, 1200, "15.pt"), (1500, 1500, "20.pt")]


def raced() -> dict[str, Any]:
    """Made-up results of two systems in each part; one has not been timed in drawing."""
    machine = {"training_memory_gb": 1.25, "sampling_memory_gb": 1.0, "machine": "a machine", "parameters": 930_000}

    def row(fids: list[float], agreement: list[float] | None, drawing: Any) -> dict[str, Any]:
        found = {"settings": "as its README says", "sampler": "Heun, 9 steps", "evaluations": 17.0, "samplers": {}}
        found |= {"steps": [100, 200, 400, 1800], "images_per_s": 192.4, "agreement": agreement, "drawing": drawing}
        return found | machine | {"legible": [0.5, 0.6, 0.7, 0.804], "fid": {"old": [2.0] * 4, "new": fids}}

    half = {"over_ours": 2.5, "seconds_of_ours": [4.0]}
    peer = row([90.0, 80.0, 70.0, 60.04], None, None)
    peer["samplers"] = {
        name: {"evaluations": 17, "fid": value} for name, value in (("Euler", 71.0), ("Heun, 9 steps", 61.0))
    }
    systems = {"ours-without-classes": row([9.0, 8.0, 7.0, 6.0], None, half), "azula": peer}
    systems["ours"] = row([5.0, 4.0, 3.0, 2.0], [0.9, 0.91, 0.92, 0.957], half)
    systems["azula-classes-our-training"] = row([50.0, 40.0, 30.0, 20.0], [0.5] * 4, half)
    found = {"minutes": 10.0, "samples": 1000, "threads": 1, "features": ["old", "new"], "seconds_of_ours": 4.0}
    real = {"fid": {"old": 0.99, "new": 5.0}, "legible": 0.981, "agreement": 0.992}
    until = {"azula": {"target": 7.0, "minutes": None, "limit": 60, "at": [[10.0, 60.0], [60.0, 9.0]]}}
    until["azula-classes-our-training"] = {"target": 3.0, "minutes": 20.0, "limit": 60, "at": [[20.0, 2.5]]}
    pace = {"ours": 6.31, "turns": 5, "seconds": 6.0}
    return {**found, "floor": real, "pace": pace, "until": until, "systems": systems}


def test_page_of_the_race_has_like_beside_like() -> None:
    from quality_page import page

    text = page(raced())
    without, with_classes = text[text.index("## Without classes") :].split("## With classes")
    end = "0.93 M | 1,800 | 192 | Heun, 9 steps | 17"
    memory = "1.25 / 1.00 GB |"
    assert f"| ours-without-classes | {end} | 6.0 | 2.0 | 80.4% |  | 10.0 s | {memory}" in without
    assert f"| azula | {end} | 60.0 | 2.0 | 80.4% |  | – | {memory}" in without
    assert f"| ours | {end} | 2.0 | 2.0 | 80.4% | 95.7% | 10.0 s | {memory}" in with_classes
    assert "| azula | 90.0 / 2.0, 50% | 80.0 / 2.0, 60% | 70.0 / 2.0, 70% | 60.0 / 2.0, 80% |" in without
    assert "| azula-classes-our-training | 50.0 / 2.0, 50%, 50% |" in with_classes
    assert "| azula-classes-our-training |" not in without
    assert "| azula | 7.0 | more than 60 min | 10 min 60.0, 60 min 9.0 |" in text
    assert "| azula-classes-our-training | 3.0 | 20 min | 20 min 2.5 |" in text
    assert text.index("| azula | Heun, 9 steps | 17 | 61.0 | ✓ |") < text.index("| azula | Euler | 17 | 71.0 |  |")
    assert "5.00 by `new`" in text


def test_plot_of_the_race_has_a_panel_for_each_part(tmp_path: Path) -> None:
    from quality_page import plot

    plot(raced(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_systems_are_of_their_part() -> None:
    from systems import PARTS, SYSTEMS, system_class

    assert sorted(SYSTEMS) == sorted(name for names in PARTS.values() for name in names)
    packages = {"diffusers": "diffusers", "denoising": "denoising_diffusion_pytorch", "azula": "azula"}
    for name in SYSTEMS:
        package = packages.get(name.split("-")[0])
        if package in sys.modules or package is None:  # importing one takes seconds
            system = system_class(name)
            assert system.name == name
            assert system.has_classes == (name in PARTS["with classes"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--systems=ours,nobody", "--systems: nobody: must be among ours-without-classes, document5, diffusers"),
        ("--until=azule", "--until: azule: must be among ours-without-classes"),
        ("--minutes=0", "--minutes 0: must be positive"),
    ],
)
def test_a_wrong_option_is_one_line(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from quality import parse

    with pytest.raises(SystemExit) as stopped:
        parse([option])
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]
