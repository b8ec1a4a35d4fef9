import inspect
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lightning.networks import DoubleConvUNet
from diffusion_lightning.networks.double_conv_unet import DoubleConv, TransformerBlock

SMALL = {"channels": (8, 12, 16, 20), "bottleneck": 24, "time_dim": 8}
"""Of different widths everywhere, so that a wrong one cannot pass for the right one."""


def small(**arguments):
    torch.manual_seed(0)
    return DoubleConvUNet(**{**SMALL, **arguments})


def run(network, *shape):
    return network(torch.randn(shape), torch.rand(shape[0]))


def attentions(network):
    return [m for m in network.modules() if isinstance(m, TransformerBlock)]


# ---------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("arguments", "trainable"), [({"attention_levels": (0, 1, 2, 3)}, 23_563_011), ({}, 23_529_539)]
)
def test_it_has_the_size_of_the_notebooks_network(arguments, trainable):
    with torch.device("meta"):
        network = DoubleConvUNet(**arguments)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trainable
    assert f"{trainable:,}" in DoubleConvUNet.__doc__


# Parameters of each part of the notebook's network, in the order they run, as its own class counts them. A stage of
# the notebook (DownSampler, UpSampler) is here the stage without its attention (selfAtt).
STAGES = [(312_192, 132_480), (1_214_208, 527_104), (2_394_368, 527_104)]
STAGES += [(6_212_480, 132_480), (1_557_952, 33_472), (414_528, 33_472)]


def test_every_part_has_the_size_it_has_in_the_notebook():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        network = DoubleConvUNet(attention_levels=(0, 1, 2, 3))
    stages = [*network.encoder, *network.decoder]
    assert [(count(s) - count(s.attention), count(s.attention)) for s in stages] == STAGES
    assert [count(m) for m in network.middle] == [3_540_992, 4_720_640, 1_770_496]
    assert (count(network.conv_in), count(network.conv_out)) == (38_848, 195)


@pytest.mark.parametrize(
    ("attention_levels", "seen"),
    [
        ((), []),
        ((0,), [(8, 64)]),  # in the decoder alone
        ((1,), [(12, 32), (8, 32)]),
        ((3,), [(20, 8)]),  # in the encoder alone
        ((1, 2, 3), [(12, 32), (16, 16), (20, 8), (12, 16), (8, 32)]),
        ((0, 1, 2, 3), [(12, 32), (16, 16), (20, 8), (12, 16), (8, 32), (8, 64)]),
    ],
)
def test_attention_is_at_the_levels_asked_for(attention_levels, seen):
    network, ran = small(attention_levels=attention_levels).eval(), []
    for block in attentions(network):
        block.register_forward_hook(lambda module, inputs, output: ran.append(tuple(output.shape[1::2])))
    with torch.no_grad():
        run(network, 1, 3, 64, 64)
    assert ran == seen


@pytest.mark.parametrize("residual", [False, True])
def test_double_convolution_is_its_formula(residual):
    module = DoubleConv(6, 6 if residual else 4, 5, residual)
    for p in module.parameters():
        nn.init.normal_(p)
    h, (w1, g1, b1, w2, g2, b2) = torch.randn(3, 6, 5, 4), module.parameters()

    def normalized(f, g, b):
        f = (f - f.mean((1, 2, 3), keepdim=True)) / (f.var((1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        return f * g[:, None, None] + b[:, None, None]

    def gelu(f):
        return f * (1 + torch.erf(f / math.sqrt(2))) / 2

    f = gelu(normalized(F.conv2d(h, w1, padding=1), g1, b1))
    f = normalized(F.conv2d(f, w2, padding=1), g2, b2)
    torch.testing.assert_close(module(h), gelu(h + f) if residual else f, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_transformer_block_is_the_explicit_softmax_and_feed_forward(num_heads):
    block = TransformerBlock(8, num_heads, dropout=0.5).eval()
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    h = torch.randn(3, 8, 5, 4)
    tokens = h.flatten(2).mT
    weight, bias = block.qkv.weight, block.qkv.bias
    q, k, v = (block.norm(tokens) @ weight.mT + bias).split(8, dim=-1)
    out, d = torch.empty_like(q), 8 // num_heads
    for head in range(num_heads):
        part = slice(head * d, (head + 1) * d)
        scores = (q[..., part] @ k[..., part].mT / math.sqrt(d)).exp()
        out[..., part] = scores / scores.sum(dim=-1, keepdim=True) @ v[..., part]
    a = tokens + out @ block.project.weight.mT + block.project.bias
    norm, widen, _, narrow = block.feed_forward
    assert widen.out_features == 16
    expected = a + narrow(F.gelu(widen(norm(a))))
    torch.testing.assert_close(block(h), expected.mT.reshape(h.shape), atol=1e-4, rtol=1e-4)


def test_attention_is_torchs_own_with_the_same_weights_and_dropout():
    block, own = TransformerBlock(8, 2, dropout=0.3), nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
    own.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.project.weight,
            "out_proj.bias": block.project.bias,
        }
    )
    for p in block.feed_forward[-1].parameters():
        nn.init.zeros_(p)
    h = torch.randn(2, 8, 4, 3)
    n = block.norm(h.flatten(2).mT)
    for training in (False, True):
        block.train(training)
        own.train(training)
        torch.manual_seed(1)
        attended = own(n, n, n, need_weights=False)[0]
        torch.manual_seed(1)
        torch.testing.assert_close(block(h) - h, attended.mT.reshape(h.shape), atol=1e-5, rtol=1e-4)


def test_network_is_its_stages_joined_as_written_out():
    """A second writing of the whole, over the tested double convolutions and attention, for a size that halves."""
    network = small(attention_levels=(0, 2)).eval()
    x, t = torch.randn(2, 3, 16, 24), torch.rand(2)
    e = F.silu(network.time_features(t))

    def stage(s, h):
        return s.attention(s.convs[1](s.convs[0](h)) + (e @ s.shift.weight.mT + s.shift.bias)[..., None, None])

    def twice(h):
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(h)

    residual = [m.residual for m in network.modules() if isinstance(m, DoubleConv)]
    assert residual == [False] + [True, False] * 3 + [False] * 3 + [True, False] * 3
    down1, down2, down3 = network.encoder
    up1, up2, up3 = network.decoder
    x1 = network.conv_in(x)
    x2 = stage(down1, F.max_pool2d(x1, 2))
    x3 = stage(down2, F.max_pool2d(x2, 2))
    h = stage(down3, F.max_pool2d(x3, 2))
    for conv in network.middle:
        h = conv(h)
    h = stage(up1, torch.cat([x3, twice(h)], dim=1))
    h = stage(up2, torch.cat([x2, twice(h)], dim=1))
    h = stage(up3, torch.cat([x1, twice(h)], dim=1))
    torch.testing.assert_close(network(x, t), network.conv_out(h), atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (33, 47), (8, 8), (15, 9)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_any_size_comes_back_with_its_own_shape(size, in_channels):
    network = small(in_channels=in_channels).eval()
    with torch.no_grad():
        out = run(network, 2, in_channels, *size)
    assert out.shape == (2, in_channels, *size)
    assert out.isfinite().all()


def test_every_stage_depends_on_the_time_of_its_own_example_only():
    network, x = small().eval(), torch.randn(2, 3, 16, 16)
    stages = [*network.encoder, *network.decoder]
    for cut in stages:
        weights = [s.shift.weight.data.clone() for s in stages]
        for s in stages:
            if s is not cut:
                s.shift.weight.data.zero_()
        a, b = network(x, torch.tensor([0.1, 0.5])), network(x, torch.tensor([0.1, 0.51]))
        torch.testing.assert_close(a[0], b[0])
        assert (a[1] - b[1]).abs().max() > 1e-4
        for s, weight in zip(stages, weights, strict=True):
            s.shift.weight.data.copy_(weight)


def test_gradient_reaches_every_parameter():
    network = small(attention_levels=(0, 1, 2, 3))
    # a sum over a normalized map would be constant, whatever the map: weigh its pixels
    (run(network, 4, 3, 16, 16) * torch.randn(4, 3, 16, 16)).sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    assert all(p.requires_grad for p in network.parameters())


def test_dropout_acts_on_attention_in_training_only():
    network, x, t = small(dropout=0.5), torch.randn(2, 3, 16, 16), torch.rand(2)
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    still = network(x, t)
    assert torch.equal(network(x, t), still)
    assert torch.equal(small(dropout=0.0)(x, t), still)
    plain = small(dropout=0.5, attention_levels=())
    assert torch.equal(plain(x, t), plain(x, t))


def test_attention_dropout_reaches_torch_and_keeps_the_mean():
    block, h = TransformerBlock(8, 2, dropout=0.25), torch.randn(1, 8, 3, 3)
    for p in block.feed_forward[-1].parameters():
        nn.init.zeros_(p)
    with torch.no_grad():
        mean = block(h.expand(4000, -1, -1, -1)).mean(0)
        torch.testing.assert_close(mean, block.eval()(h)[0], atol=0.02, rtol=0)


def test_there_is_a_vector_jacobian_product_with_respect_to_the_images():
    network = small(channels=(4, 4, 8, 8), attention_levels=(0, 1, 2, 3)).eval().double()
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    v, direction = torch.randn_like(x), torch.randn_like(x)
    _, vjp = torch.func.vjp(lambda images: network(images, t), x)
    step = 1e-6 * direction
    slope = (v * (network(x + step, t) - network(x - step, t))).sum() / 2e-6
    torch.testing.assert_close((vjp(v)[0] * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_bfloat16_autocast_stays_close_and_returns_the_dtype_of_the_images():
    network = small().eval()
    x, t = torch.randn(4, 3, 16, 16), torch.rand(4)
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x, t)
        result.square().mean().backward()
    assert result.dtype == torch.float32
    assert not torch.equal(result, exact)
    assert (result - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.double()(x.double(), t.double()).dtype == torch.float64
    assert network.bfloat16()(x.bfloat16(), t).dtype == torch.bfloat16


def test_compiles_as_one_graph():
    network = small(channels=(8, 12), attention_levels=(0, 1)).eval()
    x, t = torch.randn(2, 3, 17, 14), torch.rand(2)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), network(x, t))


# ---------------------------------------------------------------------------------------------------- arguments

EVERYTHING = {
    "in_channels": 1,
    "channels": [4, 8],
    "bottleneck": 12,
    "attention_levels": [0, 1],
    "num_heads": 2,
    "dropout": 0.1,
    "time_dim": 6,
    "time_scale": 10.0,
}


def test_constructor_arguments_rebuild_the_network():
    assert set(EVERYTHING) == set(inspect.signature(DoubleConvUNet).parameters)
    network = DoubleConvUNet(**EVERYTHING).eval()
    found = {name: getattr(network, name) for name in EVERYTHING}
    assert found == {name: tuple(value) if isinstance(value, list) else value for name, value in EVERYTHING.items()}
    json.dumps(found)  # plain values only
    rebuilt = DoubleConvUNet(**found).eval()
    rebuilt.load_state_dict(network.state_dict())
    x, t = torch.randn(2, 1, 12, 12), torch.rand(2)
    assert torch.equal(rebuilt(x, t), network(x, t))


def test_times_are_scaled_before_they_are_embedded():
    features = small(time_scale=50.0).time_features(torch.tensor([0.3]))
    torch.testing.assert_close(features[0, 0], torch.tensor(15.0).sin())
    assert DoubleConvUNet(**SMALL).time_features.scale == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels": (8,)}, r"channels must be two or more .* got \(8,\)"),
        ({"channels": (8, 0)}, r"channels must be .* got \(8, 0\)"),
        ({"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        ({"attention_levels": (4,)}, r"attention_levels must be among \[0, 1, 2, 3\], got \(4,\)"),
        ({"attention_levels": (-1,)}, r"attention_levels must be among .*, got \(-1,\)"),
        ({"num_heads": 0}, "num_heads must be .* got 0"),
        ({"num_heads": 8}, r"num_heads must be a positive divisor .* \[12, 16, 20, 12, 8\], got 8"),
        ({"channels": (6, 8), "attention_levels": (0,)}, r"num_heads must be .* \[6\], got 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0\.1"),
        ({"time_dim": 7}, "time_dim must be an even number, at least 4, got 7"),
        ({"time_dim": 2}, "time_dim must be .* got 2"),
        ({"time_scale": 0.0}, r"time_scale must be positive, got 0\.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_bad_inputs_are_named():
    network, t = small(), torch.rand(2)
    with pytest.raises(ValueError, match="labels must be None: DoubleConvUNet is unconditional"):
        network(torch.randn(2, 3, 16, 16), t, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be at least 8×8 for 4 levels, got \(2, 3, 16, 7\)"):
        network(torch.randn(2, 3, 16, 7), t)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, height, width\), got \(2, 1, 16, 16\)"):
        network(torch.randn(2, 1, 16, 16), t)
    with pytest.raises(ValueError, match=r"time_signal must have shape \(2,\)"):
        network(torch.randn(2, 3, 16, 16), torch.rand(1))
