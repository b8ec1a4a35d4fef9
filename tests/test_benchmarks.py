"""What the benchmarks compute from what they measure, on made-up measurements; and that their bare loop is ours."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lightning import DenoisingScoreMatching, KarrasPreconditioning, KarrasSDE, NetworkDenoiser, UNet

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def unet() -> UNet:
    """All of its weights are random, those that start at zero too."""
    torch.manual_seed(0)
    network = UNet(3, channels=(16, 32), num_res_blocks=1, attention_levels=(1,), embed_dim=16, num_classes=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def contested() -> dict[str, Any]:
    """Eight turns: ours is 2, 3, 4 times and once 100 times as fast as one peer, and always at 0.8 of the bare loop."""
    turns = []
    for ours, ratio in ((100.0, 2), (300.0, 3), (800.0, 4), (50.0, 100)):
        turns += [{"name": "bare loop", "ours": ours, "rate": ours / 0.8}]
        turns += [{"name": "peer", "ours": ours, "rate": ours / ratio}]
    other = {"batch_size": 32, "weights": 1_250_000, "settings": "as its README says"}
    return {"batch_size": 128, "weights": 2_000_000, "turns": turns, "others": {"bare loop": other, "peer": other}}


def test_each_turn_is_compared_with_ours_beside_it() -> None:
    from throughput import compare

    rows = compare(contested())
    assert rows["peer"]["ours_over_it"] == pytest.approx([2.75, 3.5, 28.0])
    assert rows["bare loop"]["ours_over_it"] == pytest.approx([0.8] * 3)
    assert rows["ours"]["images_per_s"][1] == 200
    assert rows["peer"]["images_per_s"][1] == 75


def test_page_of_throughput_and_its_plot(tmp_path: Path) -> None:
    from throughput import compare, page, plot

    variants = {
        "bf16": {"images_per_s": [9, 10, 11], "over_first": [1.0] * 3, "first_step_seconds": 0.2, "memory_gb": 1.5},
        "compiled": {"images_per_s": [19, 20, 21], "over_first": [1.9, 2, 2.1], "first_step_seconds": 60},
    }
    variants["compiled"]["memory_gb"] = None
    results = {
        **{"recipe": "mnist", "device": "cpu", "precision": "bf16", "seconds": 1.5, "rounds": 4, "command": "python"},
        **{"ema_share": [0.01, 0.012, 0.02], "waiting_share": 0.004, "flop_per_image": 5e8, "matrix_rate": 1e12},
        **{"matrix_share": 0.25, "machine": "a machine", "systems": compare(contested()), "variants": variants},
    }
    text = page(results)
    assert "| peer | 1.25 M | 32 | 75 | 3.50 (2.75–28.00) |" in text
    assert "| a step over one of the bare loop | 1.25 | ≤ 1.03 |" in text
    assert "| update of the EMA, of a step | 1.20% | ≤ 2 % |" in text
    assert "| compiled | 20 | 2.00 (1.90–2.10) |  | 60.0 s |" in text
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--systems=ours,nobody", "--systems: ours, nobody: with --recipe mnist, among diffusers-equal, document5"),
        ("--variants=float16", "--variants: float16: with --recipe mnist, among float32, bf16"),
    ],
)
def test_unknown_names_are_one_line(
    option: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import throughput

    monkeypatch.setattr(sys, "argv", ["throughput.py", option])
    with pytest.raises(SystemExit) as stopped:
        throughput.parse()
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_speed_of_a_run_leaves_out_its_first_value() -> None:
    from growth import speed_and_memory

    values = [("", ""), ("1", "0.5"), ("10", "0.7"), ("", ""), ("30", "0.9"), ("20", "0.9")]
    rows = [{"perf/examples_per_s": speed, "perf/memory_gb": memory} for speed, memory in values]
    assert speed_and_memory(rows) == {"images_per_s": 20, "memory_gb": 0.9}
    with pytest.raises(SystemExit, match="--seconds"):
        speed_and_memory(rows[:2])


def test_page_of_growth_and_its_plot(tmp_path: Path) -> None:
    from growth import page, plot, points

    panels = {
        title: [point._asdict() | {"images_per_s": 100.0 * k, "memory_gb": 1.0} for k, point in enumerate(row, 1)]
        for title, row in points(threads=2).items()
    }
    results = {"seconds": 10, "machine": "a machine", "panels": panels}
    assert "| 64 | 28 | 2 | 1 | 300 | 3.00 | 1.00 GB |" in page(results)
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_has_as_many_pictures_as_asked_for_and_its_page_what_was_measured(tmp_path: Path) -> None:
    from folder_memory import CLASSES, make_folder, page

    make_folder(tmp_path, 2 * CLASSES)
    folders = list(tmp_path.iterdir())
    assert len(folders) == CLASSES
    assert all(len(list(folder.iterdir())) == 2 for folder in folders)
    row = {"found": 98.2, "looked_at": 93.0, "peak": 1165.0, "worker": 0.4}
    text = page({"workers": 2, "batches": 500, "pictures": 10**6, "machine": "a machine", "rows": {"ours": row}})
    assert "| ours | 98 MB | 93 MB | 1,165 MB | 0 MB |" in text


def test_page_of_start_up() -> None:
    from start_up import drawing_seconds, page

    row = {"command": "lightning --help", "over": "import torch", "goal": 0.15, "seconds": [0.1, 0.3, 0.2]}
    text = page({"turns": 3, "machine": "a machine", "rows": [row | {"ratios": [0.1, 0.05, 0.07]}]})
    assert "| `lightning --help` | 0.20 s | `import torch` | 0.07 (0.05–0.10) | ≤ 0.15 |" in text
    assert drawing_seconds("64 samples in 0.3 s (213.3 images/s), Heun") == 0.3
    assert drawing_seconds("usage: lightning") == 0


def test_page_of_guidance() -> None:
    from guidance import page

    ratios = {"guided over 2 × unguided": [1.02, 1.0, 1.04], "with dropout over without": [0.99, 1.0, 1.01]}
    ratios["guided over 1 × twice as many"] = [0.9, 1.0, 1.1]
    text = page({"batch_size": 64, "steps": 8, "block": 10, "machine": "a machine", **ratios})
    assert "| guided over 2 × unguided | 3 | 1.020 | 1.000 to 1.040 | at most 1.05 |" in text
    assert "| guided over 1 × twice as many | 3 | 1.000 | 0.900 to 1.100 | at most 1.05 |" in text
    assert "| with dropout over without | 3 | 1.000 | 0.990 to 1.010 | at most 1.01 |" in text


def test_bare_loop_minimizes_the_objective(unet: UNet) -> None:
    from bare_loop import edm_loss

    x, noise = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8)
    sigma, labels = torch.tensor([0.01, 0.3, 1.0, 20.0]), torch.tensor([0, 1, 1, 0])
    objective = DenoisingScoreMatching("karras", reduction="mean")
    expected = objective(
        NetworkDenoiser(unet, KarrasSDE(), KarrasPreconditioning()), x, drawn=(sigma, noise), labels=labels
    )
    loss = edm_loss(unet, x, sigma.view(-1, 1, 1, 1), noise, labels, bf16=False)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=0)


def test_diffusers_equal_network_is_as_large(unet: UNet) -> None:
    pytest.importorskip("diffusers")
    from equal_unet import EqualUNet, weights

    equal = EqualUNet(unet)
    assert 0.6 < weights(equal) / weights(unet) < 1.6  # its widths are multiples of 8
    assert equal.unet.config.layers_per_block == unet.num_res_blocks
    assert equal(torch.zeros(2, 3, 8, 8), torch.zeros(2), None).shape == (2, 3, 8, 8)


def test_a_failure_in_a_process_of_its_own_is_raised_here() -> None:
    from alone import alone

    assert alone(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        alone(divmod, 1, 0)


def test_the_recipes_run_has_a_length_for_its_schedule(tmp_path: Path, make_trainer: Any) -> None:
    from lightning.pytorch.callbacks import LambdaCallback
    from recipes import arguments, build

    given = arguments("cifar10", "", tmp_path, batch_size=2, shrink=32)
    epochs = next(int(option.split("=")[1]) for option in given if option.startswith("--trainer.max_epochs="))
    module, data = build([*given, "--model.compile=false"])
    stop = LambdaCallback(on_train_batch_end=lambda trainer, *_: setattr(trainer, "should_stop", True))
    trainer = make_trainer(max_epochs=epochs, limit_train_batches=3, limit_val_batches=0, callbacks=[stop])
    trainer.fit(module, datamodule=data)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 3 * epochs


JUNIT = """<testsuites><testsuite>
<testcase name="test_samplers[Heun]" time="1.25"><properties><property name="deviation" value="3e-06"/></properties>
</testcase>
<testcase name="test_wrong" time="0.5"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
<testcase name="test_broken"><error message="no fixture"/></testcase>
<testcase name="test_left_out" time="0"><skipped message="no compiler"/></testcase>
</testsuite></testsuites>"""


def test_what_a_cards_parts_have_left(tmp_path: Path) -> None:
    import card

    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "parts").write_text("tests 1 42 100\nthroughput 124 220 220\ntraining 0 100 125\ngrid 0 4 35\n")
    (tmp_path / "run").mkdir()
    rows = (
        "step,train/loss_epoch,perf/examples_per_s,perf/memory_gb\n0,,10,1.5\n9,,30,2.5\n9,0.75,,\n19,,20,2\n19,0.5,,\n"
    )
    (tmp_path / "run" / "metrics.csv").write_text(rows)
    results = {
        **{"card": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0", "device": "cuda", "machine": "a machine"},
        **{"parts": card.parts(tmp_path / "parts"), "tests": card.tests(tmp_path / "tests.xml")},
        **{"training": card.training(tmp_path / "run"), "pictures": "drawn discs"},
        **{"has_grid": True, "has_throughput": False},
    }
    text = card.page(results)
    assert "1 passed, 2 failed, 1 skipped" in text
    assert "| test_samplers[Heun] | passed | 1.2 s | 3.0e-06 |  |" in text
    assert "| test_wrong | failed | 0.5 s |  | assert 1 == 2 |" in text
    assert "| throughput | out of time | 220 s | 220 s |" in text
    assert "| tests | failed (1) | 42 s | 100 s |" in text
    assert "on drawn discs: 20 steps, 20 images/s, 2.50 GB at its peak, loss 0.7500 → 0.5000." in text
    assert "samples.png" in text
    assert "throughput.md" not in text
    assert card.folder_name("NVIDIA H200") == "nvidia-h200"
    assert card.training(tmp_path / "nothing") == {}


def test_a_card_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import card

    assert card.problem("cpu") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in (card.problem("cuda") or "")
    monkeypatch.setattr(card, "NEEDED", ("torch", "nobody_has_this", "nor_this"))
    assert (card.problem("cuda") or "").startswith("this Python lacks nobody_has_this, nor_this;")


def test_pictures_for_a_card_have_every_class_in_its_colour(tmp_path: Path) -> None:
    import zipfile

    from card_data import generated, read

    from diffusion_lightning.images import write_png

    images, labels = generated(200)
    assert images.shape == (200, 3, 32, 32)
    assert len(labels.unique()) == 10
    assert len(images.flatten(1).unique(dim=0)) == 200
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(("cat", "ape", "cat")):
            write_png(images[number], tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"train/{name}/{number}.png")
    again, classes = read(tmp_path / "set.zip")
    assert torch.equal(again, images[:3])
    assert classes.tolist() == [1, 0, 1]


def test_digits_are_broken_in_every_way() -> None:
    from breakage import WAYS, broken

    from diffusion_lightning import EmbeddedMNIST

    x = EmbeddedMNIST().load_images()[0].images[:400] / 255
    faulty, ways = broken(x, torch.Generator().manual_seed(0))
    assert ways.bincount().tolist() == [0, *[50] * len(WAYS)]
    assert faulty.min() >= 0
    assert faulty.max() <= 1
    change = (faulty - x).abs().mean((1, 2, 3))
    for way in range(1, len(WAYS) + 1):
        assert (change[ways == way] > 1e-3).float().mean() > 0.8
        assert change[ways == way].mean() < 0.1  # most of the digit is left
    assert torch.equal(faulty, broken(x, torch.Generator().manual_seed(0))[0])


def test_features_of_digits_are_scaled_and_their_logits_stay() -> None:
    from train_digit_judge import standardize

    from diffusion_lightning.metrics.digits import DigitJudge

    torch.manual_seed(0)
    model, x = DigitJudge(), 2 * torch.rand(300, 1, 28, 28) - 1
    with torch.no_grad():
        logits = model.eval().head(model.body(x))
        standardize(model, x)
        features = model.features(x)
        torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.mean(0), torch.zeros(128), rtol=0, atol=1e-4)
    assert (features.std(0) - 1).abs().max() < 0.02 + 1e-5 / model.standard.running_var.min()
