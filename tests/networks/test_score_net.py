import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lightning.networks import ScoreNet

CIFAR = {"in_channels": 3, "strided_kernel": 4}


def count(network, trainable_only=False):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable_only)


def test_mnist_network_has_the_published_size():
    network = ScoreNet()
    assert count(network) == 1_115_425
    assert count(network, trainable_only=True) == 1_115_297
    fixed = {name: p.numel() for name, p in network.named_parameters() if not p.requires_grad}
    assert list(fixed.values()) == [128]
    assert set(fixed) <= set(network.state_dict())


@pytest.mark.parametrize(("channels", "trainable"), [((32, 64, 128, 256), 1_790_819), ((96, 192, 256, 384), 6_844_579)])
def test_cifar_variant_has_the_published_size(channels, trainable):
    assert count(ScoreNet(channels, **CIFAR), trainable_only=True) == trainable


# Of every layer with weights, in the order they run: its kind, its output on 11 images, its number of parameters.
MNIST_TABLE = [
    ("Linear", (11, 256), 65_792),
    ("Conv2d", (11, 32, 26, 26), 288),
    ("Linear", (11, 32), 8_224),
    ("GroupNorm", (11, 32, 26, 26), 64),
    ("Conv2d", (11, 64, 12, 12), 18_432),
    ("Linear", (11, 64), 16_448),
    ("GroupNorm", (11, 64, 12, 12), 128),
    ("Conv2d", (11, 128, 5, 5), 73_728),
    ("Linear", (11, 128), 32_896),
    ("GroupNorm", (11, 128, 5, 5), 256),
    ("Conv2d", (11, 256, 2, 2), 294_912),
    ("Linear", (11, 256), 65_792),
    ("GroupNorm", (11, 256, 2, 2), 512),
    ("ConvTranspose2d", (11, 128, 5, 5), 294_912),
    ("Linear", (11, 128), 32_896),
    ("GroupNorm", (11, 128, 5, 5), 256),
    ("ConvTranspose2d", (11, 64, 12, 12), 147_456),
    ("Linear", (11, 64), 16_448),
    ("GroupNorm", (11, 64, 12, 12), 128),
    ("ConvTranspose2d", (11, 32, 26, 26), 36_864),
    ("Linear", (11, 32), 8_224),
    ("GroupNorm", (11, 32, 26, 26), 64),
    ("ConvTranspose2d", (11, 1, 28, 28), 577),
]


def leaf_outputs(network, x):
    rows = []

    def record(module, _, output):
        rows.append((type(module).__name__, tuple(output.shape), count(module)))

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.GroupNorm):
            module.register_forward_hook(record)
    network(x, torch.rand(len(x)))
    return rows


def test_layers_of_the_mnist_network_are_those_of_the_published_table():
    assert leaf_outputs(ScoreNet(), torch.randn(11, 1, 28, 28)) == MNIST_TABLE


def test_layers_of_the_cifar_variant_fit_without_output_padding():
    rows = leaf_outputs(ScoreNet(**CIFAR), torch.randn(2, 3, 32, 32))
    sizes = [shape[-1] for kind, shape, _ in rows if "Conv" in kind]
    assert sizes == [30, 14, 6, 2, 6, 14, 30, 32]


def test_output_is_the_written_out_formula():
    """A second writing of the network, with the weights of the first, layer by layer and without its classes."""
    network = ScoreNet(channels=(32, 64, 96), embed_dim=16)
    weights = list(network.state_dict().values())
    x, t = torch.randn(3, 1, 20, 20), torch.rand(3)

    frequencies, weight, bias = weights[:3]
    phases = 2 * torch.pi * t[:, None] * frequencies
    e = F.silu(F.linear(torch.cat([phases.sin(), phases.cos()], dim=1), weight, bias))
    stages = [weights[3 + 5 * i : 8 + 5 * i] for i in range(5)]  # of the convolution, the shift (2) and the norm (2)

    def finish(h, stage, groups):
        h = h + F.linear(e, stage[1], stage[2])[:, :, None, None]
        h = F.group_norm(h, groups, stage[3], stage[4])
        return h * torch.sigmoid(h)

    h1 = finish(F.conv2d(x, stages[0][0]), stages[0], 4)  # 18
    h2 = finish(F.conv2d(h1, stages[1][0], stride=2), stages[1], 32)  # 8, the last row of h1 unseen
    h3 = finish(F.conv2d(h2, stages[2][0], stride=2), stages[2], 32)  # 3, the last row of h2 unseen
    h = finish(F.conv_transpose2d(h3, stages[3][0], stride=2, output_padding=1), stages[3], 32)
    h = torch.cat([h, h2], dim=1)
    h = finish(F.conv_transpose2d(h, stages[4][0], stride=2, output_padding=1), stages[4], 32)
    h = F.conv_transpose2d(torch.cat([h, h1], dim=1), *weights[28:])
    torch.testing.assert_close(network(x, t), h, atol=1e-5, rtol=1e-4)


def test_frequencies_stay_fixed_when_the_rest_is_trained():
    network = ScoreNet(channels=(32, 64), embed_dim=16)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.5)
    network(torch.randn(4, 1, 12, 12), torch.rand(4)).square().sum().backward()
    optimizer.step()
    unchanged = [name for name, p in network.state_dict().items() if torch.equal(p, before[name])]
    assert unchanged == ["time_features.frequencies"]


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (2, 1, 28, 28)),
        ({}, (2, 1, 17, 23)),
        ({}, (2, 1, 32, 18)),
        (CIFAR, (2, 3, 32, 32)),
        (CIFAR, (2, 3, 24, 27)),
        ({"channels": (32, 64)}, (1, 1, 5, 6)),
    ],
)
def test_any_size_comes_back_with_its_own_shape(arguments, shape):
    x = torch.randn(shape)
    assert ScoreNet(**arguments)(x, torch.rand(shape[0])).shape == x.shape


def test_time_signal_changes_the_output_of_its_own_example_only():
    network = ScoreNet()
    x = torch.randn(2, 1, 28, 28)
    a, b = network(x, torch.tensor([0.1, 0.5])), network(x, torch.tensor([0.1, 0.51]))
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-2


def test_output_is_not_divided_by_the_noise_level():
    network = ScoreNet()
    x = torch.randn(8, 1, 28, 28)
    small, large = network(x, torch.full((8,), 1e-5)).std(), network(x, torch.full((8,), 1.0)).std()
    assert 0.2 < small / large < 5


@pytest.mark.parametrize(
    "arguments",
    [{}, {"channels": [64, 32], "embed_dim": 8, "in_channels": 2, "strided_kernel": 4, "fourier_scale": 5.0}],
)
def test_constructor_arguments_rebuild_the_network(arguments):
    network = ScoreNet(**arguments)
    found = {name: getattr(network, name) for name in inspect.signature(ScoreNet).parameters}
    for name, value in arguments.items():
        assert found[name] == (tuple(value) if isinstance(value, list) else value)
    json.dumps(found)  # plain values only
    rebuilt = ScoreNet(**found)
    rebuilt.load_state_dict(network.state_dict())
    x, t = torch.randn(2, network.in_channels, 24, 24), torch.rand(2)
    assert torch.equal(rebuilt(x, t), network(x, t))


def test_bfloat16_autocast_stays_close_and_returns_the_dtype_of_the_images():
    torch.manual_seed(0)
    network = ScoreNet()
    x, t = torch.randn(4, 1, 28, 28), torch.rand(4)
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x, t)
    assert result.dtype == torch.float32
    assert not torch.equal(result, exact)
    assert (result - exact).norm() < 0.05 * exact.norm()
    assert network.double()(x.double(), t.double()).dtype == torch.float64
    assert network.bfloat16()(x.bfloat16(), t).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (32,)}, r"channels must be .* got \(32,\)"),
        ({"channels": (32, 48)}, r"channels must be .* multiples of 32, got \(32, 48\)"),
        ({"channels": (0, 32)}, r"channels must be .* got \(0, 32\)"),
        ({"embed_dim": 7}, "embed_dim must be .* got 7"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"strided_kernel": 5}, "strided_kernel must be 3 or 4, got 5"),
        ({"fourier_scale": 0.0}, r"fourier_scale must be positive, got 0\.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreNet(**arguments)


def test_bad_inputs_are_named():
    network, t = ScoreNet(), torch.rand(2)
    with pytest.raises(ValueError, match="unconditional"):
        network(torch.randn(2, 1, 28, 28), t, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at least 17×17 .* got \(2, 1, 28, 16\)"):
        network(torch.randn(2, 1, 28, 16), t)
    with pytest.raises(ValueError, match="at least 24×24"):
        ScoreNet(**CIFAR)(torch.randn(2, 3, 23, 32), t)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, height, width\), got \(2, 3, 28, 28\)"):
        network(torch.randn(2, 3, 28, 28), t)
    with pytest.raises(ValueError, match=r"time_signal must have shape \(2,\)"):
        network(torch.randn(2, 1, 28, 28), torch.rand(1))
