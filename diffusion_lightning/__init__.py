"""Train, watch and trust score-based diffusion models.

The names below load on first use, so that the mathematics costs torch alone: Lightning, W&B and torchmetrics are
imported only with the names that need them.
"""

from importlib import import_module
from typing import Any

from diffusion_lightning.moved import resolve_moved
from diffusion_lightning.version import __version__ as __version__

resolve_moved()

_HOME = {
    "sde": (
        "SDE",
        "PowerVESDE",
        "VESDE",
        "VPSDE",
        "SubVPSDE",
        "CosineVPSDE",
        "RectifiedFlow",
        "KarrasSDE",
        "DiscreteVPSDE",
        "DiscreteVESDE",
    ),
    "parameterization": (
        "Parameterization",
        "ScorePrediction",
        "NoisePrediction",
        "VelocityPrediction",
        "KarrasPreconditioning",
    ),
    "denoiser": ("Denoiser", "NetworkDenoiser", "GaussianMixtureDenoiser"),
    "objective": ("DenoisingScoreMatching", "Times", "UniformTimes", "LogNormalTimes", "ImportanceTimes"),
    "samplers": (
        "Sampler",
        "EulerMaruyama",
        "PredictorCorrector",
        "EulerMaruyamaPredictor",
        "ReverseDiffusionPredictor",
        "AncestralPredictor",
        "LangevinCorrector",
        "AnnealedLangevinCorrector",
        "AnnealedLangevin",
        "DDPM",
        "DDIM",
        "ProbabilityFlowODE",
        "Heun",
        "DPMSolverPlusPlus",
    ),
    "guidance": ("ClassifierFreeGuidance", "AutoGuidance", "ClassifierGuidance"),
    "inverse": (
        "Operator",
        "Inpainting",
        "Grayscale",
        "Downsample",
        "GaussianBlur",
        "MotionBlur",
        "Crop",
        "Fourier",
        "Quantize",
        "Clip",
        "Linear",
        "Function",
        "Posterior",
        "MMPS",
        "PGDM",
        "DPS",
        "Replacement",
        "PosteriorSampler",
        "RePaint",
        "TwistedSMC",
        "SDEdit",
        "restore",
    ),
    "latents": ("encode", "decode", "slerp", "interpolate"),
    "likelihood": ("log_likelihood", "bits_per_dim"),
    "networks": ("ScoreNet", "UNet", "DoubleConvUNet", "MLP", "DiffusersUNet"),
    "data.augmentation": ("GeometricAugmentation",),
    "data": (
        "EmbeddedMNIST",
        "MNIST",
        "CIFAR10",
        "ImageFolder",
        "Points",
        "BatchDataModule",
        "ImageDataModule",
        "TensorImages",
        "ConditionSource",
    ),
    "metrics.evaluation": ("evaluate",),
    "metrics.reference": ("Reference",),
    "training.ema": ("EMA",),
    "training.checkpoint": ("WholeCheckpointIO",),
    "training.schedule": ("LinearDecay",),
    "training.module": ("ScoreModule",),
    "export": ("load_denoiser", "load_sampler"),
    "callbacks": (
        "SampleGrid",
        "ConditionGrid",
        "RestorationGrid",
        "DenoisingProcess",
        "VectorField",
        "FIDCallback",
        "SlicedWasserstein",
        "LossByNoise",
        "SampleWriter",
        "LastCheckpoint",
        "BestCheckpoint",
        "GracefulStop",
        "TrainingProgressBar",
        "TerminalProgressBar",
        "RunReport",
    ),
    "training.precision": ("AutoPrecision", "Trainer"),
    "loggers": ("WandbLogger", "TensorBoardLogger", "RunLogger"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
