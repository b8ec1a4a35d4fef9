"""The dry run: its arithmetic against exact counts; the command itself is in test_cli.py."""

import math

import pytest
import torch
from torch import nn

from diffusion_lightning import (
    VPSDE,
    DPMSolverPlusPlus,
    EulerMaruyama,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    LangevinCorrector,
    NoisePrediction,
    PredictorCorrector,
    ReverseDiffusionPredictor,
    ScoreModule,
)
from diffusion_lightning.commands.dry_run import Length, evaluations, flops


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
    forward, step = flops(module, torch.randn(batch, 24), torch.zeros(batch, dtype=torch.int64))
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
