"""model.safetensors and config.yaml give back the denoiser, bit for bit, and build nothing that they should not."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from diffusion_lightning import (
    DDIM,
    MLP,
    VPSDE,
    DiffusersUNet,
    DiscreteVPSDE,
    DoubleConvUNet,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    PowerVESDE,
    PredictorCorrector,
    ScoreNet,
    ScorePrediction,
    UNet,
    load_denoiser,
    load_sampler,
)
from diffusion_lightning.export.weights import save_denoiser
from diffusion_lightning.training.recipe import describe

DENOISERS = {
    "unet": lambda: NetworkDenoiser(
        UNet(channels=(4, 8), num_heads=2, embed_dim=8, num_classes=3, time_embedding="fourier", patch_size=2),
        KarrasSDE(0.01, 50.0),
        KarrasPreconditioning(0.6),
    ),
    "score net": lambda: NetworkDenoiser(
        ScoreNet(channels=(32, 32), embed_dim=8), PowerVESDE(30.0), ScorePrediction("noise")
    ),
    "double convolutions": lambda: NetworkDenoiser(
        DoubleConvUNet(in_channels=1, channels=(8, 8), attention_levels=()),
        DiscreteVPSDE(20, schedule="cosine"),
        NoisePrediction(),
    ),
    "mlp": lambda: NetworkDenoiser(MLP(hidden=(8,)), VPSDE(0.2, 15.0), NoisePrediction()),
    "diffusers": lambda: NetworkDenoiser(
        DiffusersUNet(
            config={
                "in_channels": 1,
                "out_channels": 1,
                "block_out_channels": [8],
                "down_block_types": ["DownBlock2D"],
                "up_block_types": ["UpBlock2D"],
                "norm_num_groups": 4,
            }
        ),
        DiscreteVPSDE(),
        NoisePrediction(),
    ),
}


def made(name):
    torch.manual_seed(1)
    denoiser = DENOISERS[name]()
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return denoiser.eval()


@pytest.mark.parametrize("name", DENOISERS)
def test_it_comes_back_bit_for_bit(tmp_path, name):
    denoiser = made(name)
    shape = (2,) if name == "mlp" else (1, 8, 8)
    save_denoiser(denoiser, tmp_path, shape=shape)
    again = load_denoiser(tmp_path)
    assert not again.training
    for part in ("network", "sde", "parameterization"):
        assert describe(getattr(again, part)) == describe(getattr(denoiser, part))
    x, t = torch.randn(3, *shape), denoiser.sde.timesteps(2)
    condition = {"labels": torch.tensor([0, 2, 1])} if name == "unet" else {}
    with torch.no_grad():
        assert torch.equal(again.denoise(x, t, **condition), denoiser.denoise(x, t, **condition))


def test_the_record_tells_what_is_there(tmp_path):
    sampler = PredictorCorrector(steps=7, snr=0.1)
    save_denoiser(made("unet"), tmp_path, sampler=sampler, shape=(1, 8, 8))
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert record["denoiser"]["network"]["class_path"] == "diffusion_lightning.networks.unet.UNet"
    assert (record["shape"], record["num_classes"], record["times"]) == ([1, 8, 8], 3, [0.01, 50.0])
    assert record["format"] == "safetensors"
    assert describe(load_sampler(tmp_path)) == describe(sampler)


def test_the_weights_are_an_ordinary_safetensors_file(tmp_path):
    denoiser = made("unet")
    save_denoiser(denoiser, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == denoiser.network.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in denoiser.network.state_dict().items())


class Trap:
    """Of no type that a denoiser has; tells when it is made."""

    made = 0

    def __init__(self) -> None:
        Trap.made += 1


def trap(*args) -> KarrasSDE:
    Trap.made += 1
    return KarrasSDE()


@pytest.mark.parametrize("part", ["network", "sde", "parameterization", "sampler"])
@pytest.mark.parametrize(
    "path", [f"{__name__}.Trap", f"{__name__}.trap", "os.system", "subprocess.Popen", "builtins.exec", "no.such"]
)
def test_classes_of_other_types_and_functions_are_refused(tmp_path, part, path):
    save_denoiser(made("mlp"), tmp_path, sampler=DDIM(3))
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    arguments = {} if "rap" in path or path == "no.such" else {"command": f"touch {tmp_path / 'ran'}"}
    (record if part == "sampler" else record["denoiser"])[part] = {"class_path": path, "init_args": arguments}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    before = Trap.made
    with pytest.raises(ValueError, match=r"its config.yaml cannot be used") as refused:
        (load_sampler if part == "sampler" else load_denoiser)(tmp_path)
    assert "\n" not in str(refused.value)
    assert Trap.made == before
    assert not (tmp_path / "ran").exists()


def test_a_sampler_s_class_is_no_network(tmp_path):
    save_denoiser(made("mlp"), tmp_path, sampler=DDIM(3))
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    record["denoiser"]["sde"] = record["sampler"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(ValueError, match="cannot be used"):
        load_denoiser(tmp_path)


def test_yaml_s_own_objects_are_refused(tmp_path):
    save_denoiser(made("mlp"), tmp_path)
    (tmp_path / "config.yaml").write_text(f"diffusion_lightning: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    with pytest.raises(ValueError, match=r"its config.yaml is damaged"):
        load_denoiser(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.yaml"):
        load_denoiser(tmp_path / "nowhere")
    save_denoiser(made("mlp"), tmp_path)
    good = (tmp_path / "config.yaml").read_text()
    for text, message in (
        ("model: 3", "is of something else"),
        ("- 3", "is of something else"),
        ("a: [", "is damaged"),
        ("diffusion_lightning: x", "does not say how to make a NetworkDenoiser"),
        ("diffusion_lightning: x\ndenoiser: {network: 3}", "cannot be used"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_denoiser(tmp_path)
    (tmp_path / "config.yaml").write_text(good)
    with pytest.raises(ValueError, match="cannot be used"):
        load_sampler(tmp_path)  # of an export without one

    weights = tmp_path / "model.safetensors"
    kept = load_file(weights)
    save_file({name: value for name, value in list(kept.items())[1:]}, weights)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or does not fit config.yaml"):
        load_denoiser(tmp_path)
    weights.write_bytes(json.dumps({}).encode())
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or does not fit config.yaml"):
        load_denoiser(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors \(its format is 'safetensors'\)"):
        load_denoiser(tmp_path)
    shutil.rmtree(tmp_path)
