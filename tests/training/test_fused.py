"""Who gets a fused optimizer without asking: on a GPU, torch's own, where nothing else was chosen."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lightning.training.fused import fuse

CUDA = torch.device("cuda")
TRAINER = SimpleNamespace(precision_plugin=SimpleNamespace())


def fused(make: Any, device: torch.device = CUDA, trainer: Any = TRAINER) -> tuple[bool, Any]:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight])
    fuse(optimizer, device, trainer)
    is_fused = bool(optimizer.param_groups[0].get("fused"))
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == is_fused
    return is_fused, optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_its_kernels_leave_a_step_out(kind):
    is_fused, optimizer = fused(partial(kind, lr=0.1))
    assert is_fused
    (weight,) = optimizer.param_groups[0]["params"]
    for bad, changes in ((0.0, True), (1.0, False), (0.0, True)):
        before, weight.grad = weight.detach().clone(), torch.ones(3)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(bad)
        optimizer.step()
        assert torch.equal(weight, before) != changes


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.AdamW, foreach=True),
        partial(torch.optim.AdamW, fused=False),
        partial(torch.optim.AdamW, capturable=True),
        partial(torch.optim.SGD, differentiable=True),
        torch.optim.RMSprop,
        type("Own", (torch.optim.AdamW,), {}),
    ],
)
def test_what_was_chosen_otherwise_stays(make):
    assert not fused(make)[0]


def test_nothing_on_a_cpu_and_none_whose_gradients_are_scaled():
    assert not fused(torch.optim.AdamW, torch.device("cpu"))[0]
    scaled = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    assert not fused(torch.optim.AdamW, trainer=scaled)[0]
