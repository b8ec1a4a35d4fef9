import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import diffusion_lightning

HEAVY = ("lightning", "wandb", "torchmetrics", "torchvision", "jsonargparse")

PROMISED = """
    SDE PowerVESDE VESDE VPSDE SubVPSDE KarrasSDE ScorePrediction NoisePrediction KarrasPreconditioning Denoiser
    NetworkDenoiser GaussianMixtureDenoiser DenoisingScoreMatching UniformTimes LogNormalTimes EulerMaruyama
    PredictorCorrector EulerMaruyamaPredictor ReverseDiffusionPredictor AncestralPredictor LangevinCorrector
    AnnealedLangevinCorrector
    ProbabilityFlowODE Heun ScoreNet UNet EmbeddedMNIST MNIST CIFAR10 ImageFolder ScoreModule SampleGrid FIDCallback
    WandbLogger
"""


@pytest.mark.parametrize("name", diffusion_lightning.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(diffusion_lightning, name)
    assert value.__name__ == name
    assert value.__module__.startswith("diffusion_lightning.")
    assert value.__doc__


def test_the_names_of_the_design_are_there():
    assert set(PROMISED.split()) <= set(diffusion_lightning.__all__)
    assert dir(diffusion_lightning) == diffusion_lightning.__all__ == sorted(diffusion_lightning.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'diffusion_lightning' has no attribute 'VPDSE'"):
        _ = diffusion_lightning.VPDSE
    with pytest.raises(ImportError, match="cannot import name 'VPDSE'"):
        from diffusion_lightning import VPDSE  # noqa: F401


def test_the_mathematics_loads_torch_and_nothing_heavier():
    code = f"""
import sys
import diffusion_lightning
assert "torch" not in sys.modules
from diffusion_lightning import VPSDE, Heun, NoisePrediction, DenoisingScoreMatching, UNet, ProbabilityFlowODE, Denoiser
loaded = sorted({set(HEAVY)!r} & set(sys.modules))
assert "torch" in sys.modules
sys.exit(f"loaded as well: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_it_is_typed():
    assert (Path(diffusion_lightning.__file__).parent / "py.typed").is_file()


def test_both_commands_are_the_same_function():
    scripts = {script.name: script.value for script in distribution("diffusion-lightning").entry_points}
    assert scripts.keys() == {"lightning", "diffusion-lightning"}
    assert len(set(scripts.values())) == 1
    written = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert written.count(' = "diffusion_lightning.__main__:main"') == 2
