"""The moving average, by hand and against torch-ema's own."""

import copy
import math

import pytest
import torch
from torch import nn
from torch_ema import ExponentialMovingAverage

from diffusion_lightning.training.ema import EMA


def parameters(seed: int = 0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 2), (5,), (1,), ())]


def walk(live: list[nn.Parameter], step: int) -> None:
    """Move the weights as an optimizer would, the same way each time it is asked for the same step."""
    draw = torch.Generator().manual_seed(1000 + step)
    with torch.no_grad():
        for p in live:
            p.add_(torch.randn(p.shape, generator=draw))


def copies(live: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in live]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999, 1.0])
def test_the_average_by_hand(decay: float) -> None:
    live = parameters()
    ema = EMA(live, decay)
    by_hand = [p.detach().double() for p in live]
    assert ema.current_decay == 0
    for n in range(1, 41):
        walk(live, n)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        assert ema.current_decay == d
        by_hand = [d * average + (1 - d) * p.detach().double() for average, p in zip(by_hand, live, strict=True)]
    for average, expected in zip(ema.shadow_params, by_hand, strict=True):
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-5)
    assert ema.num_updates == 40


def test_the_first_steps_forget_the_start() -> None:
    """One step: d = min(0.9999, 2/11), so 9/11 of the new weights are in the average at once."""
    weight = nn.Parameter(torch.zeros(1))
    ema = EMA([weight], 0.9999)
    with torch.no_grad():
        weight.fill_(11.0)
    ema.update()
    torch.testing.assert_close(ema.shadow_params[0], torch.tensor([9.0]))
    assert weight.item() == 11  # and the weights are left alone


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_torch_ema(decay: float) -> None:
    ours, theirs = parameters(), parameters()
    ema, reference = EMA(ours, decay), ExponentialMovingAverage(theirs, decay)
    for step in range(60):
        walk(ours, step)
        walk(theirs, step)
        ema.update()
        reference.update()
    for a, b in zip(ema.shadow_params, reference.shadow_params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # the format of the state too, in both directions
    assert ema.state_dict().keys() == reference.state_dict().keys()
    reference.load_state_dict(ema.state_dict())
    ema.load_state_dict(reference.state_dict())
    assert_same(ema.shadow_params, reference.shadow_params)


def test_a_resumed_average_goes_on_as_if_never_interrupted() -> None:
    live = parameters()
    ema = EMA(live, 0.95)
    for step in range(8):
        walk(live, step)
        ema.update()
    saved, weights = copy.deepcopy(ema.state_dict()), copies(live)

    other = [nn.Parameter(w.clone()) for w in weights]
    resumed = EMA(parameters(5), 0.1)  # another start and another decay, which the state replaces
    with pytest.raises(ValueError, match="no longer exists"):
        resumed.update()  # the parameters that it was built on are gone
    resumed = EMA(other, 0.1)
    resumed.load_state_dict(saved)
    assert (resumed.decay, resumed.num_updates) == (0.95, 8)
    for step in range(8, 16):
        for both, average in ((live, ema), (other, resumed)):
            walk(both, step)
            average.update()
    assert_same(resumed.shadow_params, ema.shadow_params)


def test_inside_the_weights_are_the_average_and_afterwards_their_own() -> None:
    live = parameters()
    ema = EMA(live, 0.9)
    for step in range(5):
        walk(live, step)
        ema.update()
    own, average = copies(live), copies(ema.shadow_params)  # type: ignore[arg-type]
    assert not torch.equal(own[0], average[0])
    with ema.average_parameters():
        assert_same(copies(live), average)
    assert_same(copies(live), own)
    assert_same(ema.shadow_params, average)


def test_the_weights_come_back_after_an_exception() -> None:
    live = parameters()
    ema = EMA(live, 0.9)
    walk(live, 0)
    own = copies(live)
    with pytest.raises(KeyboardInterrupt), ema.average_parameters():
        raise KeyboardInterrupt
    assert_same(copies(live), own)


def test_averaging_may_be_nested() -> None:
    live = parameters()
    ema = EMA(live, 0.9)
    walk(live, 0)
    ema.update()
    own, average = copies(live), copies(ema.shadow_params)  # type: ignore[arg-type]
    with ema.average_parameters():
        with ema.average_parameters():
            assert_same(copies(live), average)
        assert_same(copies(live), average)
        with pytest.raises(RuntimeError, match="inner"), ema.average_parameters():
            raise RuntimeError("inner")
        assert_same(copies(live), average)
    assert_same(copies(live), own)


def test_the_parameters_stay_the_same_objects() -> None:
    """The optimizer holds references to them: only their values may be swapped."""
    live = parameters()
    ema = EMA(live, 0.9)
    addresses = [p.data_ptr() for p in live]
    with ema.average_parameters():
        assert [p.data_ptr() for p in live] == addresses
    ema.update()
    assert [p.data_ptr() for p in live] == addresses
    assert all(p.requires_grad and p.grad is None for p in live)
    assert not any(average.requires_grad for average in ema.shadow_params)
    assert not {p.data_ptr() for p in live} & {average.data_ptr() for average in ema.shadow_params}


def test_the_average_follows_the_weights_to_their_device() -> None:
    module = nn.Linear(2, 3)
    ema = EMA(module.parameters(), 0.9)
    module.to("meta")
    live = list(module.parameters())
    ema.update(live)
    assert all(average.device.type == "meta" for average in ema.shadow_params)
    with ema.average_parameters(live):
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_are_averaged(dtype: torch.dtype) -> None:
    """Lightning's "64-true" and "bf16-true" convert the module after the average was built."""
    module = nn.Linear(2, 3)
    ema, reference = EMA(module.parameters(), 0.9), ExponentialMovingAverage(module.parameters(), 0.9)
    module.to(dtype)
    for step in range(5):
        walk(list(module.parameters()), step)
        ema.update()
        reference.update()
    for average, expected in zip(ema.shadow_params, reference.shadow_params, strict=True):
        torch.testing.assert_close(average, expected)
    with ema.average_parameters():
        torch.testing.assert_close(module.weight.detach(), ema.shadow_params[0].to(dtype))
        assert module.weight.dtype == dtype


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_decay_must_be_a_fraction(decay: float) -> None:
    with pytest.raises(ValueError, match=f"ema_decay={decay}"):
        EMA(parameters(), decay)
