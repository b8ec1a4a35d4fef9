"""Samplers, one file per family, each algorithm as in its paper."""

from diffusion_lightning.samplers.ancestral import DDIM, DDPM
from diffusion_lightning.samplers.base import Sampler
from diffusion_lightning.samplers.dpm_solver import DPMSolverPlusPlus
from diffusion_lightning.samplers.euler_maruyama import EulerMaruyama
from diffusion_lightning.samplers.heun import Heun
from diffusion_lightning.samplers.langevin import AnnealedLangevin
from diffusion_lightning.samplers.ode import ProbabilityFlowODE
from diffusion_lightning.samplers.predictor_corrector import (
    AncestralPredictor,
    AnnealedLangevinCorrector,
    Corrector,
    EulerMaruyamaPredictor,
    LangevinCorrector,
    Predictor,
    PredictorCorrector,
    ReverseDiffusionPredictor,
)

__all__ = [
    "DDIM",
    "DDPM",
    "AncestralPredictor",
    "AnnealedLangevin",
    "AnnealedLangevinCorrector",
    "Corrector",
    "DPMSolverPlusPlus",
    "EulerMaruyama",
    "EulerMaruyamaPredictor",
    "Heun",
    "LangevinCorrector",
    "Predictor",
    "PredictorCorrector",
    "ProbabilityFlowODE",
    "ReverseDiffusionPredictor",
    "Sampler",
]
