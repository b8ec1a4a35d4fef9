"""What the tests of the samplers share: the processes, exact denoisers on them, and generators."""

from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import GaussianMixtureDenoiser
from diffusion_lightning.samplers import (
    AncestralPredictor,
    AnnealedLangevinCorrector,
    Corrector,
    EulerMaruyamaPredictor,
    LangevinCorrector,
    Predictor,
    ReverseDiffusionPredictor,
)
from diffusion_lightning.sde import (
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    KarrasSDE,
    PowerVESDE,
    RectifiedFlow,
    SubVPSDE,
)

SDES: dict[str, SDE] = {
    "power": PowerVESDE(),
    "ve": VESDE(),
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "karras": KarrasSDE(),
}
ALL_SDES: dict[str, SDE] = SDES | {
    "cosine": CosineVPSDE(),
    "flow": RectifiedFlow(),
    "discrete vp": DiscreteVPSDE(50, 2e-3, 0.4),
    "discrete cosine": DiscreteVPSDE(60, schedule="cosine"),
    "discrete ve": DiscreteVESDE(100, 0.01, 50.0),
}
PREDICTORS: dict[str, Predictor | None] = {
    "euler": EulerMaruyamaPredictor(),
    "reverse": ReverseDiffusionPredictor(),
    "ancestral": AncestralPredictor(),
    "none": None,
}
CORRECTORS: dict[str, Corrector | None] = {
    "langevin": LangevinCorrector(),
    "annealed": AnnealedLangevinCorrector(),
    "none": None,
}
PAIRS = [(p, c) for p in PREDICTORS for c in CORRECTORS if (p, c) != ("none", "none")]

# three well separated components of different weights and sizes
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.7], [0.2, -1.0]])
STDS = torch.tensor([0.08, 0.16, 0.12])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(sde: SDE, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> GaussianMixtureDenoiser:
    """The exact denoiser of the three components, ``scale`` times as wide."""
    return GaussianMixtureDenoiser(MEANS.to(dtype), scale * STDS.to(dtype), WEIGHTS.to(dtype), sde)


def gaussian(sde: SDE, mean: Tensor, std: float) -> GaussianMixtureDenoiser:
    """The exact denoiser of a single Gaussian."""
    return GaussianMixtureDenoiser(mean[None], torch.tensor([std]).to(mean), torch.ones(1).to(mean), sde)


def prior_std(sde: SDE) -> float:
    return sde.sigma(torch.tensor([sde.T], dtype=torch.float64)).item()


def recorded(denoiser: GaussianMixtureDenoiser) -> tuple[GaussianMixtureDenoiser, list[tuple[Tensor, dict[str, Any]]]]:
    """A denoiser that does the same, and the list of the times and conditions that it is called with."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    class Recorded(GaussianMixtureDenoiser):
        def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            calls.append((t.clone(), cond))
            return super().denoise(x, t, **cond)

    return Recorded(denoiser.means, denoiser.stds, denoiser.weights, denoiser.sde), calls
