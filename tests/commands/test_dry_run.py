"""The dry run: its arithmetic against exact counts; the command itself is in test_cli.py."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from diffusion_lightning import (
    VPSDE,
    ClassifierFreeGuidance,
    ConditionGrid,
    DPMSolverPlusPlus,
    EulerMaruyama,
    FIDCallback,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    LangevinCorrector,
    NoisePrediction,
    PredictorCorrector,
    ReverseDiffusionPredictor,
    SampleGrid,
    ScoreModule,
    UNet,
)
from diffusion_lightning.commands import dry_run
from diffusion_lightning.commands.dry_run import Length, evaluations, flops, seconds_per_evaluation
from diffusion_lightning.denoiser import NetworkDenoiser


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (Length(3, -1, None, 1), (140, 420)),
        (Length(3, 100, None, 1), (140, 100)),
        (Length(3, 100, None, 4), (140, 400)),
        (Length(-1, 100, None, 1), (140, 100)),
        (Length(-1, -1, None, 1), (140, math.inf)),
        (Length(None, -1, None, 1), (140, 140_000)),  # Lightning's own default is 1,000 epochs
        (Length(None, 7, None, 2), (140, 14)),
        (Length(3, -1, 10, 1), (10, 30)),
        (Length(3, -1, 1000, 1), (140, 420)),
        (Length(3, -1, 0.5, 1), (70, 210)),
        (Length(2, -1, 1.0, 1), (140, 280)),
    ],
)
def test_length_counts_batches_as_lightning_does(length: Length, expected: tuple[int, float]) -> None:
    assert length.batches(140) == expected


class Matrix(nn.Module):
    """One matrix product: 2·D² operations an example forward, as many for the gradient of the weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(dim, dim, bias=False)

    def forward(self, x: torch.Tensor, time_signal: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("batch", [1, 5])
def test_flops_of_a_matrix_product(batch: int) -> None:
    module = ScoreModule(Matrix(24), VPSDE(), NoisePrediction(), shape=(24,))
    forward, step = flops(module, torch.randn(batch, 24), {})
    assert forward == 2 * 24**2
    assert step == 4 * 24**2
    assert module.network.layer.weight.grad is None


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (DPMSolverPlusPlus(8), 8),
        (Heun(steps=18), 35),
        (EulerMaruyama(20), 20),
        (PredictorCorrector(10, ReverseDiffusionPredictor(), LangevinCorrector(), corrector_steps=2), 30),
    ],
)
def test_evaluations_are_those_of_a_real_call(sampler, nfe: int) -> None:
    module = ScoreModule(Matrix(4), KarrasSDE(), KarrasPreconditioning(), shape=(4,))
    assert evaluations(sampler, module) == nfe
    sampler(module.denoiser, (2, 4))
    assert sampler.nfe == nfe


@pytest.mark.parametrize(
    ("guidance", "nfe"),
    [
        ("own", 9),  # one level of the four is in the interval, and is asked twice
        (None, 7),
        (partial(ClassifierFreeGuidance, weight=2.0), 14),
        (partial(ClassifierFreeGuidance, weight=1.0), 7),
    ],
)
def test_guided_evaluations_are_those_of_a_real_call(make_module, guidance, nfe) -> None:
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=3)
    own = partial(ClassifierFreeGuidance, weight=2.0, interval=[0.05, 3])
    sampler = Heun(steps=4)
    module = make_module(network=network, condition_dropout=0.1, guidance=own, shape=(1, 8, 8))
    assert evaluations(sampler, module, guidance) == nfe
    module.sample(sampler, num=1, guidance=guidance)
    assert sampler.nfe == nfe


def test_what_callbacks_draw_is_counted() -> None:
    assert SampleGrid(num_samples=5).num_drawn == 5
    assert SampleGrid(num_samples=5, guidance_weights=[0, 1, 2]).num_drawn == 15
    assert ConditionGrid(num_examples=6, draws=4).num_drawn == 24
    assert FIDCallback(num_samples=100).num_drawn == 100


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a dry run does, in its order: evaluations with their device, looks at the clock, waits for a GPU, and looks
    at the memory."""
    events: list[str] = []
    denoise = NetworkDenoiser.denoise

    def watched(self: NetworkDenoiser, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        events.append(f"denoise on {x.device}")
        return denoise(self, x, *args, **kwargs)

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    def memory(device: torch.device) -> float:
        events.append(f"memory of {device}")
        return 2.5

    monkeypatch.setattr(NetworkDenoiser, "denoise", watched)
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(dry_run, "synchronize", lambda device: events.append(f"wait for {device}"))
    monkeypatch.setattr(dry_run, "peak_memory_gb", memory)
    return events


def test_only_a_gpu_is_waited_for(monkeypatch):
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for name in ("cpu", "cuda:1", "meta"):
        dry_run.synchronize(torch.device(name))
    assert waited == [torch.device("cuda", 1)]


def test_what_is_timed_is_finished(make_module, make_trainer, events):
    seconds = seconds_per_evaluation(make_trainer(), make_module(), torch.zeros(1, 1, 28, 28), {}, size=2)
    assert events == ["wait for cpu", "clock", "denoise on cpu", "wait for cpu", "clock"] * 2
    assert seconds == (10 - 7) / 2  # between the second pair of looks


def test_what_follows_the_fit_is_on_the_training_device(make_module, make_trainer, make_data, events, monkeypatch):
    """By a strategy whose root device is another one, "meta", once Lightning has moved the module to the CPU."""

    class Elsewhere(Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
            events.clear()

    trainer = make_trainer(callbacks=[Elsewhere(), SampleGrid(num_samples=4)], fast_dev_run=12)
    rows = dict(dry_run.dry_run(trainer, make_module(), make_data(), Length(3, -1, None, 1)))
    assert events[0] == "memory of meta"  # of the steps alone
    assert rows["memory"] == "2.50 GB at the peak of 12 steps"
    timed = ["wait for meta", "clock", "denoise on meta", "wait for meta", "clock"]
    assert events[1:] == ["denoise on meta"] * 2 + timed * 2
    assert "samples of 3 evaluations (Heun)" in rows["SampleGrid"]
