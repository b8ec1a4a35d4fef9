"""Checkpoints of other programs are called what they are, and nothing in them is run."""

import io
import pickle
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint
from diffusion_lightning.training.foreign import recognised

ZERO = torch.zeros(2)

CHECKPOINTS = {
    "score_sde": (
        {
            "optimizer": {"state": {}, "param_groups": []},
            "model": {"module.sigmas": ZERO, "module.all_modules.0.W": ZERO},
            "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": [ZERO]},
            "step": 3,
        },
        "score_sde",
    ),
    "lucidrains": (
        {
            "step": 3,
            "model": {"betas": ZERO},
            "opt": {},
            "ema": {"initted": ZERO, "ema_model.betas": ZERO},
            "scaler": {},
        },
        "denoising-diffusion-pytorch",
    ),
    "latent": ({"state_dict": {"model.diffusion_model.time_embed.0.weight": ZERO}}, "latent or stable diffusion"),
    "guided": ({"time_embed.0.weight": ZERO, "input_blocks.0.0.weight": ZERO}, "guided-diffusion"),
    "diffusers": ({"time_embedding.linear_1.weight": ZERO}, "--model.network DiffusersUNet"),
    "lightning": ({"pytorch-lightning_version": "2.6.0", "state_dict": {"a.weight": ZERO}}, "another module"),
    "weights": ({"layers.0.weight": ZERO}, "plain weights"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_files_of_torch(tmp_path, name, zipped):
    content, message = CHECKPOINTS[name]
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert message in str(recognised(path))
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(path)
    assert "damaged" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pickle_of_edm_is_not_run(tmp_path, monkeypatch):
    """Written as EDM's are: by a class of ``torch_utils.persistence``, which is called when the file is read."""
    module = ModuleType("torch_utils.persistence")
    calls = []

    def _reconstruct_persistent_obj(meta):
        calls.append(meta)

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent:
        def __reduce__(self):
            return _reconstruct_persistent_obj, ({"type": "class", "module_src": "import os", "state": {}},)

    stream = io.BytesIO()
    pickle.dump({"ema": Persistent(), "loss_fn": None}, stream)
    path = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    path.write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"pkl': looks like a pickled network of EDM or StyleGAN.*cannot be read yet"):
        load_checkpoint(path)
    assert calls == []


def test_safetensors_and_folders_of_diffusers(tmp_path):
    save_file({"time_embedding.linear_1.weight": ZERO}, tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({"a.weight": ZERO}, tmp_path / "model.safetensors")
    assert "DiffusersUNet" in str(recognised(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert "plain weights" in str(recognised(tmp_path / "model.safetensors"))
    assert recognised(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert "DiffusersUNet" in str(recognised(tmp_path))


def test_ours_and_what_is_nothing(tmp_path):
    """A damaged checkpoint of ours is damaged, not somebody else's."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a.weight": torch.rand(999)}, "pytorch-lightning_version": "2", KEY: {}}, path)
    content = path.read_bytes()
    assert recognised(path) is None
    for damaged in (content[:-200], content[:300], content.replace(b"a.weight", b"b.weight"), b"", b"\x80", bytes(99)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            load_checkpoint(path)
