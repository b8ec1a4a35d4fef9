import inspect
import json
import math

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from diffusion_lightning.networks import UNet
from diffusion_lightning.networks.blocks import Downsample, ResBlock, SelfAttention, Upsample, group_norm

TINY = {"channels": (8, 16), "num_res_blocks": 1, "embed_dim": 16}


def awake(network):
    """The network with random weights everywhere: what starts at zero would hide everything behind it."""
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    return network


def modules(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


def run(network, *shape, labels=None):
    return network(torch.randn(shape), torch.rand(shape[0]), labels)


# ---------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(("in_channels", "out_channels"), [(8, 8), (8, 12)])
def test_res_block_is_its_formula(in_channels, out_channels):
    block = awake(ResBlock(in_channels, out_channels, embed_dim=6))
    h, e = torch.randn(3, in_channels, 5, 4), torch.randn(3, 6)
    scale, shift = block.film(e)[:, :out_channels], block.film(e)[:, out_channels:]
    f = F.group_norm(h, in_channels // 4, block.norm_in.weight, block.norm_in.bias)
    f = F.conv2d(F.silu(f), block.conv_in.weight, block.conv_in.bias, padding=1)
    f = F.group_norm(f, out_channels // 4) * (1 + scale[..., None, None]) + shift[..., None, None]
    f = F.conv2d(F.silu(f), block.conv_out.weight, block.conv_out.bias, padding=1)
    torch.testing.assert_close(block(h, e), (block.skip(h) + f) / math.sqrt(2), atol=1e-4, rtol=1e-4)
    assert isinstance(block.skip, nn.Identity) == (in_channels == out_channels)


def test_fresh_blocks_start_as_identity_up_to_their_factor():
    h = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(ResBlock(8, 8, 4)(h, torch.randn(2, 4)), h / math.sqrt(2))
    torch.testing.assert_close(SelfAttention(8, num_heads=2)(h), h / math.sqrt(2))


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_the_explicit_softmax(num_heads):
    attention = awake(SelfAttention(8, num_heads))
    h = torch.randn(3, 8, 5, 4)
    n = attention.norm(h).flatten(2)  # (B, C, N)
    q, k, v = torch.einsum("oc,bcn->bon", attention.qkv.weight, n).add(attention.qkv.bias[:, None]).split(8, dim=1)
    out = torch.empty_like(q)
    d = 8 // num_heads
    for head in range(num_heads):
        part = slice(head * d, (head + 1) * d)
        weights = (torch.einsum("bcq,bck->bqk", q[:, part], k[:, part]) / math.sqrt(d)).exp()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out[:, part] = torch.einsum("bqk,bck->bcq", weights, v[:, part])
    out = torch.einsum("oc,bcn->bon", attention.project.weight, out) + attention.project.bias[:, None]
    expected = (h + out.unflatten(-1, (5, 4))) / math.sqrt(2)
    torch.testing.assert_close(attention(h), expected, atol=1e-5, rtol=1e-4)


def test_attention_on_a_cpu_under_bf16_is_that_of_float32(monkeypatch):
    """The kernel is given float32, so what differs from float32 is the rounding of q, k, v and the output alone."""
    attention = awake(SelfAttention(8, 2))
    h = torch.randn(3, 8, 6, 6, requires_grad=True)
    (exact_gradient,) = torch.autograd.grad((exact := attention(h)).square().sum(), h)
    dtypes, kernel = [], F.scaled_dot_product_attention

    def recorded(*args, **kwargs):
        # inside, an autocast would take float32 back to bf16
        dtypes.append((*(a.dtype for a in args), torch.is_autocast_enabled("cpu")))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention(h)
    (gradient,) = torch.autograd.grad(result.float().square().sum(), h)
    assert dtypes == [(torch.float32, torch.float32, torch.float32, False)]
    assert 0 < (result - exact).norm() < 0.02 * exact.norm()  # bf16 rounds to 2⁻⁸
    assert 0 < (gradient - exact_gradient).norm() < 0.02 * exact_gradient.norm()


@pytest.mark.parametrize(("size", "half"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((1, 2), (1, 1))])
def test_resampling_goes_there_and_back_for_odd_sizes(size, half):
    h = torch.randn(2, 4, *size)
    down = Downsample(4, 6)(h)
    assert down.shape == (2, 6, *half)
    assert Upsample(6, 3)(down, h.shape[2:]).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (8, 2), (32, 8), (48, 12), (50, 10), (128, 32), (160, 32), (320, 32)]
)
def test_group_norm_divides_its_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


# ---------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("num_res_blocks", [1, 2, 3])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_num_res_blocks_counts_in_encoder_middle_and_decoder(num_res_blocks, levels):
    network = UNet(channels=(8,) * levels, num_res_blocks=num_res_blocks, embed_dim=8)
    assert len(modules(network.encoder, ResBlock)) == num_res_blocks * levels
    assert len(modules(network.middle, ResBlock)) == 2
    assert len(modules(network.decoder, ResBlock)) == (num_res_blocks + 1) * levels
    ran = []
    for block in modules(network, ResBlock):
        block.register_forward_hook(lambda *_: ran.append(1))
    run(network, 1, 1, 8, 8)
    assert len(ran) == len(modules(network, ResBlock))


@pytest.mark.parametrize(
    ("attention_levels", "middle", "sizes"),
    [
        ((), False, []),
        ((), True, [7]),
        ((1,), False, [14] * 5),
        ((0, 2), False, [28] * 5 + [7] * 5),
        ((2,), True, [7] * 6),
    ],
)
def test_attention_is_where_it_is_asked_for(attention_levels, middle, sizes):
    network = UNet(
        channels=(8, 8, 16), num_res_blocks=2, attention_levels=attention_levels, middle_attention=middle, embed_dim=8
    )
    ran = []
    for attention in modules(network, SelfAttention):
        attention.register_forward_hook(lambda module, inputs, output: ran.append(output.shape[-1]))
    run(network, 1, 1, 28, 28)
    assert sorted(ran, reverse=True) == sizes


@pytest.mark.parametrize(("attention_levels", "reaches"), [((), False), ((0,), True)])
def test_attention_carries_information_across_the_image(attention_levels, reaches):
    network = awake(
        UNet(channels=(8,), num_res_blocks=1, attention_levels=attention_levels, middle_attention=False, embed_dim=8)
    )
    for module in network.modules():  # group norms are global too
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    x = torch.randn(1, 1, 28, 28, requires_grad=True)  # wider than the convolutions' reach of 12 pixels
    network(x, torch.rand(1))[0, 0, 0, 0].backward()
    assert x.grad[0, 0, 0, 0] != 0
    assert (x.grad[0, 0, -1, -1] != 0) == reaches


@pytest.mark.parametrize("num_res_blocks", [1, 2])
def test_every_skip_reaches_the_decoder(num_res_blocks):
    """With the main path cut behind every module of the encoder, only its skip can bring it a gradient."""
    network = awake(UNet(channels=(8, 8, 16), num_res_blocks=num_res_blocks, embed_dim=8))
    for module in [*network.encoder, network.middle[0]]:
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
    run(network, 2, 1, 9, 9).square().sum().backward()
    for module in [network.conv_in, *network.encoder]:
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_classes": 3},
        {"time_embedding": "fourier", "num_res_blocks": 2},
        {"attention_levels": (0, 1), "patch_size": 2},
    ],
)
def test_every_parameter_is_used(arguments):
    network = awake(UNet(**{**TINY, **arguments}))
    labels = torch.arange(4) if "num_classes" in arguments else None
    (run(network, 4, 1, 8, 8, labels=labels) * torch.randn(4, 1, 8, 8)).sum().backward()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unused == []
    fixed = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert fixed == (["time_features.frequencies"] if "time_embedding" in arguments else [])


def test_fresh_network_gives_zero():
    assert not run(UNet(**TINY), 2, 1, 8, 8).any()


# ---------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("size", [(28, 28), (27, 29), (7, 5), (1, 1), (64, 3)])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_any_size_comes_back_with_its_own_shape(size, in_channels):
    network = awake(UNet(in_channels=in_channels, channels=(8, 8, 16, 8), num_res_blocks=1, embed_dim=8))
    out = run(network, 2, in_channels, *size)
    assert out.shape == (2, in_channels, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("time_embedding", ["sinusoidal", "fourier"])
def test_time_signal_changes_the_output_of_its_own_example_only(time_embedding):
    torch.manual_seed(0)
    network = awake(UNet(**TINY, time_embedding=time_embedding))
    x = torch.randn(2, 1, 8, 8)
    a, b = network(x, torch.tensor([0.1, 0.5])), network(x, torch.tensor([0.1, 0.51]))
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 0.05 * a[1].abs().max()


@pytest.mark.parametrize(
    ("time_embedding", "time_scale", "used"),
    [("sinusoidal", None, 1000.0), ("fourier", None, 16.0), ("sinusoidal", 3.0, 3.0), ("fourier", 3.0, 3.0)],
)
def test_time_scale_has_a_default_of_each_embedding(time_embedding, time_scale, used):
    network = UNet(**TINY, time_embedding=time_embedding, time_scale=time_scale)
    assert network.time_features.scale == used
    assert network.time_scale == time_scale


def test_labels_choose_the_class_and_none_is_the_null_class():
    network = awake(UNet(**TINY, num_classes=3))
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    by_class = [network(x, t, torch.full((4,), label)) for label in range(4)]
    for i, a in enumerate(by_class):
        for b in by_class[:i]:
            assert (a - b).abs().amax(dim=(1, 2, 3)).min() > 1e-2
    torch.testing.assert_close(network(x, t), by_class[3])
    mixed = network(x, t, torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(mixed, torch.stack([by_class[c][i] for i, c in enumerate([2, 0, 3, 1])]))


def test_labels_are_refused_without_classes():
    with pytest.raises(ValueError, match="labels must be None"):
        run(UNet(**TINY), 2, 1, 8, 8, labels=torch.zeros(2, dtype=torch.int64))


def test_augment_labels_steer_and_none_is_zeros():
    network = awake(UNet(**TINY, augment_dim=9))
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    plain = network(x, t)
    assert torch.equal(network(x, t, augment_labels=torch.zeros(2, 9)), plain)
    told = network(x, t, augment_labels=torch.stack((torch.zeros(9), torch.ones(9))))
    torch.testing.assert_close(told[0], plain[0])
    assert (told[1] - plain[1]).abs().max() > 1e-2


def test_every_weight_has_a_gradient_without_augment_labels():
    network = awake(UNet(**TINY, augment_dim=9))  # DDP stops at a weight that has none
    network(torch.randn(2, 1, 8, 8), torch.rand(2)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_augment_labels_are_refused_without_their_number():
    with pytest.raises(ValueError, match="augment_labels must be None"):
        UNet(**TINY)(torch.randn(2, 1, 8, 8), torch.rand(2), augment_labels=torch.zeros(2, 9))


def test_patches_are_folded_into_channels_and_unfolded_again():
    network = UNet(in_channels=2, patch_size=2, **TINY)
    seen = {}
    network.conv_in.register_forward_hook(lambda module, inputs, output: seen.update(folded=inputs[0]))
    network.conv_out.register_forward_hook(lambda module, inputs, output: seen["folded"])
    x = torch.randn(3, 2, 12, 8)
    out = network(x, torch.rand(3))
    assert seen["folded"].shape == (3, 8, 6, 4)
    assert torch.equal(seen["folded"][:, 0], x[:, 0, ::2, ::2])
    assert torch.equal(seen["folded"][:, 7], x[:, 1, 1::2, 1::2])
    assert torch.equal(out, x)


def test_dropout_acts_in_training_only():
    network = awake(UNet(**TINY, dropout=0.5))
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_batch_is_examples_apart():
    network = awake(UNet(**TINY, attention_levels=(0,)))
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), atol=1e-4, rtol=1e-4)


def test_bfloat16_autocast_stays_close_and_returns_the_dtype_of_the_images():
    torch.manual_seed(0)
    network = awake(UNet(**TINY, attention_levels=(1,), num_classes=2))
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x, t)
        result.square().mean().backward()
    assert result.dtype == torch.float32
    assert not torch.equal(result, exact)
    assert (result - exact).norm() < 0.1 * exact.norm()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.double()(x.double(), t.double()).dtype == torch.float64
    assert network.bfloat16()(x.bfloat16(), t).dtype == torch.bfloat16


def test_compiles_as_one_graph():
    network = awake(UNet(**TINY, num_classes=2, patch_size=2))
    x, t, labels = torch.randn(2, 1, 14, 14), torch.rand(2), torch.tensor([0, 1])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, labels), network(x, t, labels))


# ------------------------------------------------------------------------------------------------ checkpointing

DEEP = {**TINY, "num_res_blocks": 2, "attention_levels": (1,), "num_classes": 2, "dropout": 0.3}


def pair():
    """The same network without and with checkpointing."""
    torch.manual_seed(0)
    plain = awake(UNet(**DEEP))
    checkpointed = UNet(**DEEP, checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    return plain, checkpointed


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 1, 8, 8, generator=generator), torch.rand(3, generator=generator), torch.tensor([0, 1, 2])


def gradients(network, autocast=False):
    """Of the loss and of a draw afterwards, from the same random state."""
    network.zero_grad()
    x, t, labels = images()
    x.requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = network(x, t, labels).square().mean()
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad for p in network.parameters() if p.grad is not None), torch.rand(4)]


def calls_of(network):
    """How often each of its blocks with weights runs, in a list that goes on growing."""
    calls = []
    for module in modules(network, ResBlock):
        module.register_forward_pre_hook(lambda module, args: calls.append(module))
    return calls


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_gives_the_same_gradients_bit_for_bit(autocast):
    plain, checkpointed = pair()
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    calls = calls_of(checkpointed)
    with_it, without = gradients(checkpointed, autocast), gradients(plain, autocast)
    assert len(calls) == 2 * len(modules(plain, ResBlock))  # all were computed once more
    assert len(with_it) == len(without)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_checkpointing_is_for_training_alone():
    _, network = pair()
    calls, blocks = calls_of(network), len(modules(network, ResBlock))
    with torch.no_grad():
        network(*images())
    network.eval()
    x, *others = images()
    network(x.requires_grad_(), *others).sum().backward()  # as for a likelihood
    assert len(calls) == 2 * blocks


def test_checkpointing_keeps_less_for_the_backward_pass():
    def kept(network):
        """Bytes of what is saved, but for the weights; what shares memory is counted once."""
        own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
        saved = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that its address is not used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(*images()).sum()
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

    plain, checkpointed = pair()
    assert kept(checkpointed) < kept(plain) / 2


def test_checkpointing_compiles_as_one_graph():
    torch._dynamo.reset()
    plain, checkpointed = pair()
    # not "eager", which draws the dropout of the backward pass anew
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(checkpointed, backend=counter, fullgraph=True)
    for result, expected in zip(gradients(compiled), gradients(plain), strict=True):
        torch.testing.assert_close(result, expected)
    assert counter.frame_count == 1
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------------- arguments

EVERYTHING = {
    "in_channels": 3,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [1],
    "middle_attention": False,
    "num_heads": 2,
    "embed_dim": 12,
    "dropout": 0.1,
    "patch_size": 2,
    "num_classes": 5,
    "time_embedding": "fourier",
    "time_scale": 4.0,
    "checkpointing": True,
    "augment_dim": 9,
    "condition_dim": 3,
    "condition_channels": 2,
    "context_dim": 4,
}


@pytest.mark.parametrize("arguments", [{}, EVERYTHING])
def test_constructor_arguments_rebuild_the_network(arguments):
    assert set(EVERYTHING) == set(inspect.signature(UNet).parameters)
    network = awake(UNet(**arguments)).eval()
    found = {name: getattr(network, name) for name in inspect.signature(UNet).parameters}
    for name, value in arguments.items():
        assert found[name] == (tuple(value) if isinstance(value, list) else value)
    json.dumps(found)  # plain values only
    rebuilt = UNet(**found).eval()
    rebuilt.load_state_dict(network.state_dict())
    x, t = torch.randn(2, network.in_channels, 12, 12), torch.rand(2)
    assert torch.equal(rebuilt(x, t), network(x, t))


def test_command_line_reads_the_signature():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(UNet, "unet")
    arguments = ["--unet.channels=[8,16]", "--unet.attention_levels=[1]", "--unet.num_classes=4", "--unet.embed_dim=8"]
    network = parser.instantiate(parser.parse_args([*arguments, "--unet.time_embedding=fourier"])).unet
    assert (network.channels, network.attention_levels, network.num_classes) == ((8, 16), (1,), 4)
    with pytest.raises(Exception, match="time_embedding"):
        parser.parse_args(["--unet.time_embedding=cosine"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels": ()}, r"channels must be .* got \(\)"),
        ({"channels": (8, 0)}, r"channels must be .* got \(8, 0\)"),
        ({"augment_dim": 0}, "augment_dim must be None or at least 1, got 0"),
        ({"condition_dim": 0}, "condition_dim must be None or at least 1, got 0"),
        ({"condition_channels": -1}, "condition_channels must be None or at least 1, got -1"),
        ({"context_dim": 0}, "context_dim must be None or at least 1, got 0"),
        (
            {"context_dim": 4, "middle_attention": False},
            "context_dim must be None where no level attends, for attention looks at the tokens, got 4",
        ),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"attention_levels": (2,)}, r"attention_levels must be among \[0, 1\], got \(2,\)"),
        ({"attention_levels": (-1,)}, r"attention_levels must be among \[0, 1\], got \(-1,\)"),
        ({"num_heads": 3}, r"num_heads must be a positive divisor of .*\[16\], got 3"),
        ({"num_heads": 0}, "num_heads must be .* got 0"),
        ({"channels": (6, 8), "attention_levels": (0,)}, r"num_heads must be .* \[6, 8\], got 4"),
        ({"embed_dim": 9}, "embed_dim must be .* got 9"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be None or at least 1, got 0"),
        ({"time_embedding": "cosine"}, "time_embedding must be .* got 'cosine'"),
        ({"time_scale": 0.0}, r"time_scale must be None or positive, got 0\.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**TINY, **arguments})


def test_bad_inputs_are_named():
    t = torch.rand(2)
    with pytest.raises(ValueError, match=r"multiples of patch_size=2, got x of shape \(2, 1, 7, 8\)"):
        UNet(**TINY, patch_size=2)(torch.randn(2, 1, 7, 8), t)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, height, width\), got \(2, 3, 8, 8\)"):
        UNet(**TINY)(torch.randn(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match=r"time_signal must have shape \(2,\)"):
        UNet(**TINY)(torch.randn(2, 1, 8, 8), torch.rand(2, 1))
    with pytest.raises(ValueError, match="num_heads must be a positive divisor of 8 channels, got 3"):
        SelfAttention(8, num_heads=3)
