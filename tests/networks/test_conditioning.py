"""Networks that are told a class, a vector, a picture, tokens: what they compute, and what they do without."""

import math
from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from diffusion_lightning import MLP, UNet
from diffusion_lightning.conditions import null_of, taken_by
from diffusion_lightning.networks.blocks import CrossAttention
from diffusion_lightning.networks.conditioning import PictureBeside, TokenContext, VectorEmbedding

NAN = math.nan
SIZES = {"num_classes": 3, "condition_dim": 2, "condition_channels": 2, "context_dim": 3}
TINY = {"channels": (8, 16), "num_res_blocks": 1, "embed_dim": 16, "attention_levels": (1,)}


def awake(network):
    """The network with random weights everywhere: what starts at zero would hide everything behind it."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return network


def unet(**arguments):
    torch.manual_seed(0)
    network = awake(UNet(**{**TINY, **SIZES, **arguments}))
    network.standardize(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    return network


def mlp():
    torch.manual_seed(0)
    network = awake(MLP(2, (16, 16), num_classes=3, condition_dim=2))
    network.standardize(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    return network


def inputs(network, batch=4, side=6):
    """x, times and all conditions that a network takes; the third example is told nothing."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    tokens = draw(batch, 5, 3)
    tokens[3:, 2:] = NAN
    every = {
        "labels": torch.arange(batch) % 3,
        "vector": draw(batch, 2),
        "picture": draw(batch, 2, 4, 3),
        "tokens": tokens,
    }
    told = {name: every[name] for name in network.conditions}
    for name, value in told.items():
        value[2] = network.null_class if name == "labels" else NAN
    x = draw(batch, 2) if isinstance(network, MLP) else draw(batch, 1, side, side)
    return x, torch.rand(batch, generator=generator), told


def shallow():
    return unet(channels=(8,), attention_levels=(), patch_size=2)


NETWORKS = [pytest.param(unet, id="unet"), pytest.param(mlp, id="mlp")]
PARTS = [(unet, name) for name in ("labels", "vector", "picture", "tokens")] + [(mlp, "labels"), (mlp, "vector")]
by_part = pytest.mark.parametrize(
    ("make", "name"), [pytest.param(*part, id=f"{part[0].__name__}-{part[1]}") for part in PARTS]
)

# ---- the parts


def test_a_vector_is_standardized_and_embedded_by_two_layers():
    part = awake(VectorEmbedding(2, 4))
    # 0, of a constant, counts as 1, and so does what is none in float32
    part.standardize(torch.tensor([10.0, -1.0]), torch.tensor([5.0, 1e-60], dtype=torch.float64))
    vector = torch.tensor([[12.0, -1.0], [NAN, -1.0], [10.0, 1.0]])
    first, last = part.layers[0], part.layers[2]
    told = torch.tensor([[0.4, 0.0], [0.0, 2.0]])
    expected = F.silu(told @ first.weight.T + first.bias) @ last.weight.T + last.bias
    result = part(torch.zeros(3, 1), vector)
    torch.testing.assert_close(result[[0, 2]], expected)
    assert torch.equal(result[1], part.null)
    assert torch.equal(part(torch.zeros(3, 1), None), part.null.expand(3, 4))


def test_far_numbers_keep_their_differences_in_bf16():
    """In bf16 both were 1000, and in float32 1000.1 − 1000 is right to 3 digits."""
    part = VectorEmbedding(1, 4)
    part.standardize(torch.tensor([1000.0]), torch.tensor([0.1]))
    seen = []
    part.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    part.layers.bfloat16()
    part(torch.zeros(2, 1, dtype=torch.bfloat16), torch.tensor([[1000.1], [999.8]]))
    torch.testing.assert_close(seen[0].float(), torch.tensor([[1.0], [-2.0]]), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [1.0, 1.0], r"mean must be of shape \(2,\), got \(1,\)"),
        ([0.0, 0.0], [[1.0, 1.0]], r"std must be of shape \(2,\), got \(1, 2\)"),
        ([0.0, NAN], [1.0, 1.0], r"mean must be finite numbers, got \[0.0, nan\]"),
        ([0.0, 0.0], [1.0, -1.0], r"std must be finite numbers, 0 or above, got \[1.0, -1.0\]"),
    ],
)
def test_statistics_that_cannot_be_are_named(mean, std, message):
    for network in (unet(), mlp()):
        before = {name: value.clone() for name, value in network.named_buffers()}
        with pytest.raises(ValueError, match=message):
            network.standardize(torch.tensor(mean), torch.tensor(std))
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("network", [UNet(**TINY), MLP()])
def test_without_a_vector_there_is_nothing_to_standardize(network):
    with pytest.raises(ValueError, match=r"vector: this \w+ takes none to standardize \(condition_dim=None\)"):
        network.standardize(torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize("make", NETWORKS)
def test_the_state_dict_holds_the_statistics(make):
    network = make()
    fresh = type(network)(
        **{name: getattr(network, name) for name in ("num_classes", "condition_dim")},
        **{
            name: getattr(network, name)
            for name in (("hidden",) if isinstance(network, MLP) else (*TINY, "condition_channels", "context_dim"))
        },
    )
    fresh.load_state_dict(network.state_dict())
    x, t, told = inputs(network)
    assert torch.equal(fresh(x, t, **told), network(x, t, **told))
    assert fresh.vector_embedding.mean.tolist() == [1, -2]


def test_a_picture_of_the_size_of_x_is_put_behind_it_as_it_is():
    part = awake(PictureBeside(2))
    x, picture = torch.randn(3, 1, 4, 5), torch.randn(3, 2, 4, 5)
    picture[1, 1, 3, 4] = NAN
    result = part(x, picture)
    assert torch.equal(result[:, :1], x)
    assert torch.equal(result[[0, 2], 1:], picture[[0, 2]])
    assert torch.equal(result[1, 1:], part.null.expand(2, 4, 5))
    assert torch.equal(part(x, None)[:, 1:], part.null.expand(3, 2, 4, 5))


def test_a_smaller_picture_is_interpolated_and_a_larger_one_averaged():
    part, x = PictureBeside(1), torch.zeros(1, 1, 1, 4)
    smaller = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 2)
    assert part(x, smaller)[0, 1, 0].tolist() == [0, 1, 3, 4]  # pixels' centres at ±1/4, ±3/4 of a pixel
    # triangles 2 pixels wide to either side of the centres 1 and 3: 1, 3, 3, 1 eighths, less what is over the edge
    larger = torch.eye(4).reshape(4, 1, 1, 4)
    weights = part(torch.zeros(4, 1, 1, 2), larger)[:, 1, 0].T
    torch.testing.assert_close(weights, torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7)


def test_tokens_stand_behind_the_null_and_padding_is_masked():
    part = awake(TokenContext(2))
    tokens = torch.tensor([[[1.0, 2], [NAN, 3], [4, 5]], [[NAN, 1], [NAN, NAN], [2, NAN]]])
    context, mask = part(torch.zeros(2, 1), tokens)
    assert mask.tolist() == [[False, True, False, True], [True, False, False, False]]
    assert torch.equal(context[:, 0], part.null.expand(2, 2))
    assert context[0, 1:].tolist() == [[1, 2], [0, 0], [4, 5]]
    for none in (None, torch.zeros(2, 0, 2)):
        context, mask = part(torch.zeros(2, 1), none)
        assert context.shape == (2, 1, 2)
        assert mask.tolist() == [[True], [True]]


@pytest.mark.parametrize("num_heads", [1, 2])
def test_cross_attention_is_the_explicit_softmax(num_heads):
    part = awake(CrossAttention(8, 3, num_heads))
    h, context = torch.randn(2, 8, 3, 2), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, False, True, True], [False, False, True, False]])
    positions = part.norm(h).flatten(2).transpose(1, 2)
    expected = h.clone()
    for example in range(2):
        q = positions[example] @ part.query.weight.T + part.query.bias
        tokens = context[example, mask[example]]
        k, v = (tokens @ part.key_value.weight.T + part.key_value.bias).split(8, dim=1)
        heads = []
        for head in torch.arange(8).chunk(num_heads):
            weights = (q[:, head] @ k[:, head].T / math.sqrt(8 // num_heads)).softmax(1)
            heads.append(weights @ v[:, head])
        update = torch.cat(heads, 1) @ part.project.weight.T + part.project.bias
        expected[example] += update.T.reshape(8, 3, 2)
    torch.testing.assert_close(part(h, context, mask), expected / math.sqrt(2), atol=1e-5, rtol=1e-4)
    fresh = CrossAttention(8, 3, num_heads)
    torch.testing.assert_close(fresh(h, context, mask), h / math.sqrt(2))


def test_cross_attention_is_wherever_there_is_attention():
    network = unet(middle_attention=False)
    attending = [name.removesuffix(".attention.qkv") for name, _ in network.named_modules() if name.endswith(".qkv")]
    looking = [name for name, module in network.named_modules() if isinstance(module, CrossAttention)]
    assert looking == [f"{name}.cross_attention" for name in attending]
    assert len(looking) == 3


# ---- whole networks


def test_a_network_names_what_it_is_told_of():
    assert unet().conditions == taken_by(unet()) == ("labels", "vector", "picture", "tokens")
    assert mlp().conditions == taken_by(mlp()) == ("labels", "vector")
    assert UNet(**TINY, context_dim=3, condition_dim=2).conditions == ("vector", "tokens")
    assert UNet(**TINY).conditions == MLP().conditions == ()


@by_part
def test_each_condition_changes_its_own_example_only(make, name):
    network = make()
    x, t, told = inputs(network)
    before = network(x, t, **told)
    told[name] = told[name].clone()
    told[name][1] = 2 if name == "labels" else told[name][1] + 0.5
    after = network(x, t, **told)
    assert (after - before)[1].abs().max() > 0.01
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])


@by_part
def test_the_null_is_the_condition_left_out_bit_for_bit(make, name):
    network = make()
    x, t, told = inputs(network)
    nothing = null_of(network, {name: told[name]})
    rest = {other: value for other, value in told.items() if other != name}
    expected = network(x, t, **rest)
    if name == "tokens":  # padding is masked, and adds nothing but zeros to sums of another length
        torch.testing.assert_close(network(x, t, **rest, **nothing), expected)
    else:
        assert torch.equal(network(x, t, **rest, **nothing), expected)
    assert (network(x, t, **told) - expected)[[0, 1, 3]].abs().amax(dim=tuple(range(1, x.ndim))).min() > 1e-3
    torch.testing.assert_close(network(x, t, **told)[2], expected[2])


@pytest.mark.parametrize("make", NETWORKS)
def test_a_mixed_batch_is_its_examples_one_by_one(make):
    network = make()
    x, t, told = inputs(network)
    alone = [network(x[i : i + 1], t[i : i + 1], **{name: v[i : i + 1] for name, v in told.items()}) for i in range(4)]
    torch.testing.assert_close(network(x, t, **told), torch.cat(alone), atol=1e-5, rtol=1e-4)
    # and the third, which is told nothing, is one that conditions were left out of
    torch.testing.assert_close(alone[2], network(x[2:3], t[2:3]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_where_padding_stands_and_how_much_there_is_changes_nothing(bf16):
    network = unet()
    x, t, told = inputs(network)
    tokens = 10 * told.pop("tokens")  # so that each counts

    def answer(other):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return network(x, t, **told, tokens=other)

    near = {"atol": 0.05, "rtol": 0.05} if bf16 else {"atol": 1e-5, "rtol": 1e-4}
    expected = answer(tokens)
    for other in (
        tokens[:, [3, 0, 4, 1, 2]],  # any order
        torch.cat([tokens, torch.full((4, 40, 3), NAN)], 1),
        torch.cat([torch.full((4, 40, 3), NAN), tokens], 1),
        torch.where(tokens.isnan() & (torch.arange(3) > 0), 1e30, tokens),  # one NaN is enough
    ):
        torch.testing.assert_close(answer(other), expected, **near)
    fewer = answer(tokens[:, :2])
    torch.testing.assert_close(fewer[3], expected[3], **near)
    assert (fewer - expected)[:2].abs().amax(dim=(1, 2, 3)).min() > 0.5


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("given", ["mixed", "nothing", "all"])
def test_gradients_are_finite_and_every_weight_has_one(make, given):
    network = make()
    x, t, told = inputs(network)
    x.requires_grad_()
    if given == "all":
        rows = torch.tensor([0, 1, 3])
        x, t, told = x[rows], t[rows], {name: value[rows] for name, value in told.items()}
    out = network(x, t, **({} if given == "nothing" else told))
    (out * torch.randn_like(out)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DDP waits for each
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
    nulls = {name: p.grad.any().item() for name, p in network.named_parameters() if name.endswith("null")}
    if given != "nothing":
        assert set(nulls.values()) == {given == "mixed"}
    else:
        assert all(nulls.values())


@pytest.mark.parametrize(
    "arguments", [{}, {"num_classes": 2}, {"condition_dim": 2}, {"condition_channels": 2}, {"context_dim": 3}]
)
def test_what_a_network_does_not_take_is_refused(arguments):
    network = UNet(**TINY, **arguments)
    x, t, every = inputs(unet())
    for name in {"labels", "vector", "picture", "tokens"} - set(network.conditions):
        kind = "has no classes" if name == "labels" else f"takes no {name}"
        with pytest.raises(ValueError, match=rf"^{name} must be None: this UNet {kind} \(\w+=None\)$"):
            network(x, t, **{name: every[name]})
    with pytest.raises(ValueError, match=r"^vector must be None: this MLP takes no vector \(condition_dim=None\)$"):
        MLP()(torch.zeros(4, 2), t, vector=every["vector"])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("labels", torch.zeros(4), r"labels must be int64 \(4,\), .* by num_classes=3; got float32 \(4,\)"),
        ("labels", torch.zeros(1, dtype=torch.int64), r"labels must be int64 \(4,\), .*; got int64 \(1,\)"),
        ("vector", torch.zeros(4, 3), r"vector must be floats \(4, 2\), .* by condition_dim=2; got float32 \(4, 3\)"),
        ("vector", torch.zeros(1, 2), r"vector must be .*; got float32 \(1, 2\)"),
        ("vector", torch.zeros(4, 2, dtype=torch.int64), r"vector must be floats .*; got int64 \(4, 2\)"),
        ("picture", torch.zeros(4, 1, 4, 4), r"picture must be floats \(4, 2, height, width\), .*channels=2; got .*"),
        ("picture", torch.zeros(4, 2, 4), r"picture must be .*; got float32 \(4, 2, 4\)"),
        ("picture", torch.zeros(4, 2, 0, 4), r"picture must be .*; got float32 \(4, 2, 0, 4\)"),
        ("picture", torch.zeros(4, 2, 4, 4, dtype=torch.uint8), r"picture must be floats .*; got uint8 \(4, 2, 4, 4\)"),
        ("tokens", torch.zeros(4, 5, 2), r"tokens must be floats \(4, length, 3\), .* by context_dim=3; got .*"),
        ("tokens", torch.zeros(4, 3), r"tokens must be .*; got float32 \(4, 3\)"),
        ("tokens", torch.zeros(2, 5, 3), r"tokens must be .*; got float32 \(2, 5, 3\)"),
    ],
)
def test_a_condition_of_another_shape_or_type_is_named(name, wrong, message):
    network = unet()
    x, t, _ = inputs(network)
    with pytest.raises(ValueError, match=f"^{message}$"):
        network(x, t, **{name: wrong})


# ---- how networks are run


def gradients(network, **autocast):
    network.zero_grad()
    x, t, told = inputs(network)
    with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
        out = network(x, t, **told)
        out.float().square().mean().backward()
    return out, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_checkpointing_gives_the_same_gradients_bit_for_bit():
    (out, plain), (other, checkpointed) = (
        gradients(unet(checkpointing=on, dropout=0.0), enabled=False) for on in (False, True)
    )
    assert torch.equal(out, other)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.parametrize("make", NETWORKS)
def test_bfloat16_stays_close(make):
    network = make()
    exact, _ = gradients(network, enabled=False)
    result, grads = gradients(network, enabled=True)
    assert result.dtype == torch.float32
    assert 0 < (result - exact).norm() < 0.1 * exact.norm()
    assert all(grad.isfinite().all() for grad in grads.values())
    x, t, told = inputs(network)
    assert network.double()(x.double(), t.double(), **told).dtype == torch.float64
    assert network.bfloat16()(x.bfloat16(), t, **told).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [shallow, mlp])
def test_compiles_as_one_graph(make):
    network = make()
    x, t, told = inputs(network)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, **told), network(x, t, **told))
    torch.testing.assert_close(compiled(x, t), network(x, t))


@pytest.mark.parametrize("make", [shallow, mlp])
def test_exports_with_any_batch(make):
    network = make().eval()
    x, t, told = inputs(network)
    batch = torch.export.Dim("batch", max=64)
    shapes = {"x": {0: batch}, "time_signal": {0: batch}, **{name: {0: batch} for name in told}}
    program = torch.export.export(network, (x, t), told, dynamic_shapes=shapes, strict=False).module()
    for size in (4, 7):
        x, t, told = inputs(network, size)
        torch.testing.assert_close(program(x, t, **told), network(x, t, **told), atol=1e-5, rtol=1e-4)


def loss_of(network, rows):
    x, t, told = inputs(unet())
    return network(x[rows], t[rows], **{name: value[rows] for name, value in told.items()}).square().mean()


def one_of_two(rank, folder):
    """Two steps of DDP's, of which the second fails if a weight had no gradient in the first."""
    init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    network = DistributedDataParallel(unet())
    for _ in range(2):
        network.zero_grad()
        loss_of(network, [2, 0] if rank else [1, 3]).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in network.module.named_parameters()}, folder / "gradients.pt")
    destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """Though one of them has an example that is told nothing, and the other has none."""
    processes = [get_context("fork").Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    network = unet()
    loss_of(network, [1, 3, 2, 0]).backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    torch.testing.assert_close(torch.load(tmp_path / "gradients.pt"), expected, atol=1e-4, rtol=1e-4)


def test_the_shape_is_known_without_content():
    network = unet().to("meta")
    x, t, told = inputs(network)
    out = network(x.to("meta"), t.to("meta"), **{name: value.to("meta") for name, value in told.items()})
    assert out.shape == x.shape
    assert network(x.to("meta"), t.to("meta")).shape == x.shape


def test_a_network_without_conditions_has_the_weights_it_had():
    plain, told = UNet(**TINY), unet()
    assert not any(word in name for name in plain.state_dict() for word in ("vector", "picture", "token", "cross"))
    assert [name for name in told.state_dict() if name in plain.state_dict()] == list(plain.state_dict())
    assert [*MLP().state_dict()] == [f"layers.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")]
