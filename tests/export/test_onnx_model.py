"""denoiser.onnx: what ONNX Runtime computes from it is the denoiser, at any batch size."""

import subprocess
import sys

import onnxruntime
import pytest
import torch

from diffusion_lightning import (
    MLP,
    VPSDE,
    CosineVPSDE,
    DiscreteVPSDE,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    RectifiedFlow,
    ScorePrediction,
    SubVPSDE,
    UNet,
    VelocityPrediction,
)
from diffusion_lightning.export import onnx_model
from diffusion_lightning.export.onnx_model import save_onnx
from diffusion_lightning.export.program import example_inputs


def unet(**arguments):
    return UNet(
        channels=(4, 8), num_res_blocks=1, attention_levels=(1,), num_heads=2, embed_dim=8, patch_size=2, **arguments
    )


MODELS = {
    "edm with classes": lambda: NetworkDenoiser(
        unet(num_classes=3, time_embedding="fourier"), KarrasSDE(), KarrasPreconditioning()
    ),
    "ddpm": lambda: NetworkDenoiser(unet(), DiscreteVPSDE(), NoisePrediction()),
    "flow of points": lambda: NetworkDenoiser(MLP(hidden=(8,)), RectifiedFlow(), VelocityPrediction()),
    "sub-vp of points": lambda: NetworkDenoiser(MLP(hidden=(8,)), SubVPSDE(), ScorePrediction()),
    "cosine of points": lambda: NetworkDenoiser(MLP(hidden=(8,)), CosineVPSDE(), VelocityPrediction()),
}


def made(name):
    generator = torch.Generator().manual_seed(1)
    denoiser = MODELS[name]().eval()
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return denoiser, (2,) if "points" in name else (1, 8, 8)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_computes_the_denoiser(tmp_path, name):
    denoiser, shape = made(name)
    save_onnx(denoiser, tmp_path, shape=shape)
    session = onnxruntime.InferenceSession(str(tmp_path / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    assert [argument.name for argument in session.get_inputs()] == ["x", "t", "labels"][: 3 if "classes" in name else 2]
    for batch in (1, 2, 6):
        inputs = example_inputs(denoiser, shape, batch)
        given = {argument.name: value.numpy() for argument, value in zip(session.get_inputs(), inputs, strict=True)}
        (result,) = session.run(["denoised"], given)
        x, t, *labels = inputs
        with torch.no_grad():
            expected = denoiser.denoise(x, t, **({"labels": labels[0]} if labels else {}))
        size = max(1.0, x.abs().max().item(), expected.abs().max().item())
        torch.testing.assert_close(torch.from_numpy(result), expected, rtol=0, atol=1e-4 * size)


def test_large_weights_lie_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "LARGEST_FILE", 100)
    denoiser, shape = made("ddpm")
    save_onnx(denoiser, tmp_path, shape=shape)
    assert {path.name for path in tmp_path.iterdir()} == {"denoiser.onnx", "denoiser.onnx.data"}


def test_a_single_file_otherwise(tmp_path):
    denoiser = NetworkDenoiser(MLP(), VPSDE(), NoisePrediction()).eval()
    save_onnx(denoiser, tmp_path, shape=(2,))
    assert [path.name for path in tmp_path.iterdir()] == ["denoiser.onnx"]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "try:\n    import diffusion_lightning.export.onnx_model\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().endswith("pip install 'diffusion-lightning[export]'")
