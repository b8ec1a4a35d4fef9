import inspect
import json

import pytest
import torch
from torch import nn

from diffusion_lightning.networks import MLP


def test_layers_and_size_are_those_of_the_founding_document():
    network = MLP()
    layers = [(m.in_features, m.out_features) if isinstance(m, nn.Linear) else type(m) for m in network.layers]
    assert layers == [(3, 128), nn.Softplus, (128, 128), nn.Softplus, (128, 2)]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 17_282
    assert "17,282" in MLP.__doc__


@pytest.mark.parametrize(("dim", "hidden"), [(2, (128, 128)), (1, (4,)), (5, (7, 3, 6))])
def test_output_is_the_written_out_formula(dim, hidden):
    network = MLP(dim, hidden)
    x, t = torch.randn(6, dim), torch.rand(6)
    *inner, last, bias = network.state_dict().values()
    h = torch.cat([x, t[:, None]], dim=1)
    for w, b in zip(inner[::2], inner[1::2], strict=True):
        h = (1 + (h @ w.T + b).exp()).log()
    result = network(x, t)
    assert result.shape == x.shape
    torch.testing.assert_close(result, h @ last.T + bias, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_every_parameter_the_points_and_the_time():
    network = MLP()
    x, t = torch.randn(6, 2, requires_grad=True), torch.rand(6, requires_grad=True)
    network(x, t).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in [*network.parameters(), x, t])


def test_bfloat16_autocast_stays_close_and_returns_the_dtype_of_the_points():
    torch.manual_seed(0)
    network, x, t = MLP(), torch.randn(64, 2), torch.rand(64)
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x, t)
    assert result.dtype == torch.float32
    assert not torch.equal(result, exact)
    assert (result - exact).norm() < 0.05 * exact.norm()
    assert network.double()(x.double(), t).dtype == torch.float64


def test_compiles_as_one_graph_for_any_batch():
    network = MLP()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    for size in (5, 3):
        x, t = torch.randn(size, 2), torch.rand(size)
        torch.testing.assert_close(compiled(x, t), network(x, t))


@pytest.mark.parametrize("arguments", [{}, {"dim": 3, "hidden": [5, 4], "num_classes": 4, "condition_dim": 2}])
def test_constructor_arguments_rebuild_the_network(arguments):
    network = MLP(**arguments)
    found = {name: getattr(network, name) for name in inspect.signature(MLP).parameters}
    defaults = {"dim": 2, "hidden": (128, 128), "num_classes": None, "condition_dim": None}
    assert found == defaults | {**arguments, "hidden": tuple(found["hidden"])}
    assert list(found["hidden"]) == list(arguments.get("hidden", (128, 128)))
    json.dumps(found)  # plain values only
    MLP(**found).load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden must be one or more positive numbers, got \(\)"),
        ({"num_classes": 0}, "num_classes must be None or at least 1, got 0"),
        ({"condition_dim": 0}, "condition_dim must be None or at least 1, got 0"),
        ({"hidden": (8, 0)}, r"hidden must be .* got \(8, 0\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)


def test_bad_inputs_are_named():
    network, x, t = MLP(), torch.randn(4, 2), torch.rand(4)
    with pytest.raises(ValueError, match=r"labels must be None: this MLP has no classes \(num_classes=None\)"):
        network(x, t, torch.zeros(4, dtype=torch.int64))
    for wrong in (torch.randn(4, 3), torch.randn(4), torch.randn(4, 2, 1)):
        with pytest.raises(ValueError, match=r"x must be of shape \(batch, 2\), got \(4"):
            network(wrong, t)
    for wrong in (torch.rand(1), torch.rand(4, 1), torch.rand(())):
        with pytest.raises(ValueError, match=r"time_signal must be of shape \(batch,\) like x, got \("):
            network(x, wrong)
