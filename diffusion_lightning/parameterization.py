r"""What the raw output of a network means.

Every parameterization in use is an affine wrapper around the network F (Karras et al. 2022, eq. 7):

.. math:: D(x, t) = c_{\text{skip}}(t)\,x + c_{\text{out}}(t)\,F\big(c_{\text{in}}(t)\,x,\; c_{\text{noise}}(t)\big)

where D is the denoiser, E[x0 | x_t = x], and c_noise(t) is the time signal that the network sees. Training F by any
weighted denoising loss makes it predict the target (x0 − c_skip·x_t)/c_out.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion_lightning.sde import SDE, expand


class Coefficients(NamedTuple):
    """The four scalars of the wrapper at times t; each ``(B,)``."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Parameterization(ABC):
    """Says how a network's output becomes the denoised image; subclasses give the four coefficients."""

    @abstractmethod
    def coefficients(self, sde: SDE, t: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and c_noise at the times ``t``, each ``(B,)``."""

    def target(self, sde: SDE, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What the network should output for x = x_t: (x0 − c_skip·x)/c_out; shape of ``x``."""
        c = self.coefficients(sde, t)
        return (x0 - expand(c.skip, x) * x) / expand(c.out, x)


class ScorePrediction(Parameterization):
    """The output divided by σ(t) is the score: s = F(x, t)/σ(t), hence D = (x + σ·F)/α.

    Dividing by σ gives every t an output of unit size, since E‖s‖² ≈ d/σ² (Song & Ermon 2019, section 4.2, and the
    tutorial's score network, where it is part of the network).

    Args:
        condition: what the network is told: ``"time"``, t, or ``"noise"``, σ(t), as in noise-conditional networks.

    Raises:
        ValueError: for another ``condition``.
    """

    def __init__(self, condition: Literal["time", "noise"] = "time") -> None:
        if condition not in ("time", "noise"):
            raise ValueError(f"condition={condition!r}: must be 'time' or 'noise'")
        self.condition = condition

    def coefficients(self, sde: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        signal = t if self.condition == "time" else sigma
        return Coefficients(skip=1 / alpha, out=sigma / alpha, input=torch.ones_like(t), noise=signal)


class NoisePrediction(Parameterization):
    """The output is the noise: ε = F(x, t), hence D = (x − σ·F)/α (Ho et al. 2020, eq. 11 and 14)."""

    def coefficients(self, sde: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return Coefficients(skip=1 / alpha, out=-sigma / alpha, input=torch.ones_like(t), noise=t)


class VelocityPrediction(Parameterization):
    r"""The output is the velocity v = (α'·x0 + σ'·z)/(ασ' − α'σ), hence D = σ'/(ασ' − α'σ)·x − σ·F.

    The divisor is a choice of clock, in which v is what the literature calls the velocity: α·z − σ·x0 on
    variance-preserving processes (Salimans & Ho 2022, section 4), z − x0 on :class:`RectifiedFlow` (Liu et al. 2023);
    on variance-exploding ones it is the noise.
    """

    def coefficients(self, sde: SDE, t: Tensor) -> Coefficients:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        alpha_rate, sigma_rate = sde.rates(t)
        clock = alpha * sigma_rate - alpha_rate * sigma
        return Coefficients(skip=sigma_rate / clock, out=-sigma, input=torch.ones_like(t), noise=t)


class KarrasPreconditioning(Parameterization):
    r"""EDM's preconditioning: network input and target have unit variance at every noise level.

    With the noise level σ̃ = σ/α and x̃ = x/α (Karras et al. 2022, table 1; for α = 1 these are σ and x themselves):
    c_skip = σ_d²/(σ̃² + σ_d²), c_out = σ̃σ_d/√(σ̃² + σ_d²), c_in = 1/√(σ̃² + σ_d²), c_noise = ¼ ln σ̃.

    Args:
        sigma_data: σ_d, the standard deviation of the data; positive.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data={sigma_data}: must be positive")
        self.sigma_data = sigma_data

    def coefficients(self, sde: SDE, t: Tensor) -> Coefficients:
        alpha, level = sde.alpha(t), sde.noise_level(t)
        variance = level**2 + self.sigma_data**2
        return Coefficients(
            skip=self.sigma_data**2 / variance / alpha,
            out=level * self.sigma_data * variance.rsqrt(),
            input=variance.rsqrt() / alpha,
            noise=level.log() / 4,
        )
