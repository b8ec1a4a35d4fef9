"""denoiser.pt2: loaded with torch alone it is the denoiser, at any batch size, for every process and network."""

import subprocess
import sys

import pytest
import torch

from diffusion_lightning import (
    MLP,
    VESDE,
    VPSDE,
    ClassifierFreeGuidance,
    CosineVPSDE,
    DiffusersUNet,
    DiscreteVESDE,
    DiscreteVPSDE,
    DoubleConvUNet,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    PowerVESDE,
    RectifiedFlow,
    ScoreNet,
    ScorePrediction,
    SubVPSDE,
    UNet,
    VelocityPrediction,
)
from diffusion_lightning.export.program import TOLERANCE, check_function, example_inputs, save_program

PROCESSES = [
    *(PowerVESDE(), VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), RectifiedFlow(), KarrasSDE()),
    *(DiscreteVPSDE(), DiscreteVPSDE(30, schedule="cosine"), DiscreteVESDE()),
]
PARAMETERIZATIONS = [ScorePrediction(), ScorePrediction("noise"), NoisePrediction(), KarrasPreconditioning()]
UNET = {"channels": (4, 8), "num_res_blocks": 1, "attention_levels": (1,), "num_heads": 2, "embed_dim": 8}
NETWORKS = {
    "unet": lambda: UNet(**UNET),
    "unet with patches": lambda: UNet(**UNET, patch_size=2, time_embedding="fourier"),
    "unet with classes": lambda: UNet(**UNET, num_classes=3),
    "unet told of augmentation": lambda: UNet(**UNET, augment_dim=9),
    "score net": lambda: ScoreNet(channels=(32, 32), embed_dim=8),
    "double convolutions": lambda: DoubleConvUNet(in_channels=1, channels=(8, 16), attention_levels=(1,)),
    "diffusers": lambda: DiffusersUNet(
        config={
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4,
        }
    ),
    "mlp": lambda: MLP(hidden=(8,)),
}


def with_weights(network):
    """None of which is zero, as the last ones are at the start."""
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return network


def equal_at_other_sizes(program, denoiser, shape):
    for batch in (1, 2, 5):
        x, t, *labels = example_inputs(denoiser, shape, batch)
        with torch.no_grad():
            expected = denoiser.denoise(x, t, **({"labels": labels[0]} if labels else {}))
            result = program(x, t, *labels)
        size = max(1.0, x.abs().max().item(), expected.abs().max().item())
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(tmp_path, name):
    denoiser = NetworkDenoiser(with_weights(NETWORKS[name]()), KarrasSDE(), KarrasPreconditioning()).eval()
    if name == "diffusers":
        denoiser = NetworkDenoiser(denoiser.network, DiscreteVPSDE(), NoisePrediction()).eval()
    shape = (2,) if name == "mlp" else (1, 8, 8)
    save_program(denoiser, tmp_path, shape=shape)
    equal_at_other_sizes(torch.export.load(tmp_path / "denoiser.pt2").module(), denoiser, shape)


@pytest.mark.parametrize(
    ("sde", "parameterization"),
    [*((sde, VelocityPrediction()) for sde in PROCESSES), *((DiscreteVPSDE(), other) for other in PARAMETERIZATIONS)],
    ids=lambda part: type(part).__name__,
)
def test_every_process_and_parameterization(tmp_path, sde, parameterization):
    """The velocity needs all that a process knows: α, σ and their rates."""
    denoiser = NetworkDenoiser(with_weights(MLP(hidden=(8,))), sde, parameterization).eval()
    save_program(denoiser, tmp_path, shape=(2,))
    equal_at_other_sizes(torch.export.load(tmp_path / "denoiser.pt2").module(), denoiser, (2,))
    x, t = example_inputs(denoiser, (2,), 4)
    assert denoiser.denoise(x, t).isfinite().all()  # what was traced has left nothing behind


def test_labels_are_an_argument(tmp_path):
    denoiser = NetworkDenoiser(with_weights(NETWORKS["unet with classes"]()), VPSDE(), NoisePrediction()).eval()
    save_program(denoiser, tmp_path, shape=(1, 8, 8))
    program = torch.export.load(tmp_path / "denoiser.pt2").module()
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5)
    with torch.no_grad():
        for labels in (torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 3, 3])):
            torch.testing.assert_close(program(x, t, labels), denoiser.denoise(x, t, labels=labels), rtol=0, atol=1e-5)
        torch.testing.assert_close(program(x, t, labels), denoiser.denoise(x, t), rtol=0, atol=1e-5)  # the null class


def test_torch_alone_can_run_it(tmp_path):
    denoiser = NetworkDenoiser(with_weights(NETWORKS["unet with patches"]()), DiscreteVPSDE(), NoisePrediction()).eval()
    save_program(denoiser, tmp_path, shape=(1, 8, 8))
    x, t = example_inputs(denoiser, (1, 8, 8), 5)
    torch.save((x, t), tmp_path / "inputs.pt")
    code = f"""
import sys, torch
x, t = torch.load({str(tmp_path / "inputs.pt")!r})
denoised = torch.export.load({str(tmp_path / "denoiser.pt2")!r}).module()(x, t)
torch.save(denoised, {str(tmp_path / "denoised.pt")!r})
sys.exit("diffusion_lightning" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    with torch.no_grad():
        expected = denoiser.denoise(x, t)
    torch.testing.assert_close(torch.load(tmp_path / "denoised.pt"), expected, rtol=0, atol=1e-5)


def test_a_torch_that_cannot_read_what_it_wrote(tmp_path, monkeypatch):
    """As torch 2.6 cannot that of a U-Net."""

    def load(path):
        raise RuntimeError("17 lines")

    monkeypatch.setattr(torch.export, "load", load)
    denoiser = NetworkDenoiser(with_weights(MLP(hidden=(8,))), VPSDE(), NoisePrediction()).eval()
    with pytest.raises(
        ValueError, match=r"^torch .* cannot read back .* \(RuntimeError\): nothing is written; .* --format onnx or"
    ):
        save_program(denoiser, tmp_path, shape=(2,))


def test_another_function_is_found_out():
    denoiser = NetworkDenoiser(with_weights(MLP(hidden=(8,))), VPSDE(), NoisePrediction()).eval()
    with torch.no_grad():
        check_function(denoiser.denoise, denoiser, (2,), TOLERANCE)
        with pytest.raises(ValueError, match="the exported program differs from the checkpoint by"):
            check_function(lambda x, t: denoiser.denoise(x, t) * (1 + 1e-4), denoiser, (2,), TOLERANCE)
        with pytest.raises(ValueError, match="differs from the checkpoint by nan"):
            check_function(lambda x, t: denoiser.denoise(x, t) * torch.nan, denoiser, (2,), TOLERANCE)


def test_a_guided_denoiser(tmp_path):
    """Inside of the interval and outside in one batch, whatever was traced; not the unguided one."""
    small = {"channels": (4,), "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False}
    network = with_weights(UNet(**small, num_classes=3))
    bare = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning()).eval()
    guided = ClassifierFreeGuidance(bare, 3.0, (0.2, 3.0), rescale=0.7, threshold=0.9)
    save_program(guided, tmp_path, shape=(1, 8, 8))
    program = torch.export.load(tmp_path / "denoiser.pt2").module()
    t = torch.tensor([0.01, 0.5, 1.0, 2.5, 40.0])
    x, labels = torch.randn(5, 1, 8, 8) * t[:, None, None, None], torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        expected, own = guided.denoise(x, t, labels=labels), bare.denoise(x, t, labels=labels)
    assert (program(x, t, labels) - expected).abs().max() <= TOLERANCE * max(1, x.abs().max())
    differs = (expected - own).abs().amax((1, 2, 3)) > 1e-3
    assert differs.tolist() == [False, True, True, True, False]
