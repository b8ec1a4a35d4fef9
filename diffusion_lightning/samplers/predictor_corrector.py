"""Predictor–corrector sampling (Song et al. 2021, section 4.2 and appendix G).

A predictor takes the state from t to s; a corrector runs Langevin dynamics at one time, which pulls the state towards
p_t and so repairs the predictor's error. As in the authors' code, each step corrects at t, then predicts s: the last
thing done is a prediction, whose mean is the sample.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers.ancestral import posterior
from diffusion_lightning.samplers.base import StepSampler, intervals
from diffusion_lightning.samplers.euler_maruyama import reverse_step
from diffusion_lightning.sde import expand, standard_normal


class Predictor(ABC):
    """One step of a numerical method for the reverse SDE."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """Mean, shape of ``x``, and standard deviation, ``(B, 1, …)``, of the state at s < t given ``x`` at t."""


class EulerMaruyamaPredictor(Predictor):
    """Euler–Maruyama: x − (f·x − g²·score)·Δt, with noise g√Δt."""

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return reverse_step(denoiser, x, t, s, **cond)


class ReverseDiffusionPredictor(Predictor):
    """Reverse diffusion (Song et al. 2021, appendix E): the reverse SDE discretized as the forward one is.

    The exact forward step x_t = α_{t|s}·x_s + σ_{t|s}·z has drift (α_{t|s} − 1)·x and noise σ_{t|s}, hence the mean
    (2 − α_{t|s})·x + σ²_{t|s}·score with noise σ_{t|s}. For VE this is x + (σ_t² − σ_s²)·score (algorithm 2); for
    VP (2 − √(1−β))·x + β·score (algorithm 3).
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        ratio, variance = (expand(v, x) for v in denoiser.sde.transition(t, s))
        return (2 - ratio) * x + variance * denoiser.score(x, t, **cond), variance.sqrt()


class AncestralPredictor(Predictor):
    """Ancestral sampling: the posterior q(x_s | x_t, x0) at x0 = D(x_t, t) (Ho et al. 2020, eq. 6–7; Song eq. 47).

    Mean (x + σ²_{t|s}·score)/α_{t|s}, variance σ²_{t|s}·σ_s²/σ_t².
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return posterior(denoiser.sde, x, denoiser.denoise(x, t, **cond), t, s)


class Corrector(ABC):
    """One step of Langevin dynamics, x + ε·score + √(2ε)·z; subclasses choose the step size ε."""

    @abstractmethod
    def step_size(self, score: Tensor, sigma: Tensor, snr: float) -> Tensor:
        """ε, broadcastable to ``score``, at noise ``sigma`` ``(B,)`` for the signal-to-noise ratio ``snr``."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, snr: float, generator: torch.Generator | None, **cond: Any
    ) -> tuple[Tensor, Tensor]:
        """The state after one step at time t, and its mean (the state without this step's noise)."""
        score = denoiser.score(x, t, **cond)
        size = self.step_size(score, denoiser.sde.sigma(t), snr)
        mean = x + size * score
        return mean + (2 * size).sqrt() * standard_normal(x.shape, device=x.device, generator=generator), mean


class LangevinCorrector(Corrector):
    """ε = 2·(snr·√d/‖score‖)², d dimensions, the norm averaged over the batch (Song et al. 2021, algorithms 4 and 5).

    √d is the expected norm of the noise. Because of the average, one image's step depends a little on the others in
    its batch, as in the paper's code. Algorithm 5's factor α_i for VP, within 2 % of 1 at 1,000 steps, is taken as 1.
    """

    def step_size(self, score: Tensor, sigma: Tensor, snr: float) -> Tensor:
        flat = score.flatten(1)
        return 2 * (snr * math.sqrt(flat.shape[1]) / flat.norm(dim=1).mean()) ** 2


class AnnealedLangevinCorrector(Corrector):
    """ε = 2·(snr·σ(t))², set by the process alone (Song & Ermon 2019; in the code of Song et al. 2021)."""

    def step_size(self, score: Tensor, sigma: Tensor, snr: float) -> Tensor:
        return expand(2 * (snr * sigma) ** 2, score)


class PredictorCorrector(StepSampler):
    """Predictor–corrector sampling; 1 evaluation for the predictor and ``corrector_steps`` for the corrector a step.

    Args:
        steps: how many predictions.
        predictor: :class:`ReverseDiffusionPredictor` by default; ``None`` to correct only, which ends at the last but
            one time of the grid and needs many steps to follow the falling noise.
        corrector: :class:`LangevinCorrector` by default; ``None`` to predict only.
        snr: r, the signal-to-noise ratio of a Langevin step, positive.
        corrector_steps: Langevin steps at each time.
        t_min: where to stop; the SDE's own ``t_min`` if left out. The tutorial stops at 1e-3.

    Raises:
        ValueError: if ``snr`` is not positive, ``corrector_steps`` is below 1, or there is neither of the two.
    """

    def __init__(
        self,
        steps: int = 500,
        predictor: Predictor | None = ReverseDiffusionPredictor(),  # noqa: B008 — it has no state
        corrector: Corrector | None = LangevinCorrector(),  # noqa: B008
        snr: float = 0.16,
        corrector_steps: int = 1,
        t_min: float | None = None,
    ) -> None:
        super().__init__(steps, t_min)
        if not 0 < snr < math.inf:
            raise ValueError(f"snr={snr}: must be positive")
        if not (corrector_steps >= 1 and corrector_steps % 1 == 0):
            raise ValueError(f"corrector_steps={corrector_steps}: must be at least 1 (corrector=None leaves it out)")
        if predictor is None and corrector is None:
            raise ValueError("predictor=None, corrector=None: at least one of them is needed")
        self.predictor = predictor
        self.corrector = corrector
        self.snr = snr
        self.corrector_steps = corrector_steps

    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        for t, s, last in intervals(self.times(denoiser.sde, self.steps, x), len(x)):
            mean = x
            if self.corrector is not None:
                for _ in range(self.corrector_steps):
                    x, mean = self.corrector(denoiser, x, t, self.snr, generator, **cond)
            if self.predictor is not None:
                mean, std = self.predictor(denoiser, x, t, s, **cond)
                if not last:
                    x = mean + std * standard_normal(x.shape, device=x.device, generator=generator)
            yield mean if last else x
