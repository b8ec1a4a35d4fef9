r"""Denoising score matching: which times, which weight.

.. math:: \mathcal{L} = \mathbb{E}_{t,\,x_0,\,z}\; \lambda(t)\,\lVert D(x_t, t) - x_0 \rVert^2,
          \qquad x_t = \alpha x_0 + \sigma z .

Its minimizer is the posterior mean, whatever the positive weight λ (Vincent 2011; Song et al. 2021, eq. 7). Since the
score's error is α/σ² times the denoiser's and the noise's α/σ times, the weights of the literature read

============ ============================ =======================================================================
weighting    λ(t)                          it is the plain squared error of
============ ============================ =======================================================================
simple       α²/σ²                        the noise (Ho et al. 2020, eq. 14); also of σ·score (Song & Ermon 2019)
likelihood   g²α²/σ⁴                      g·score: bounds the likelihood when t is uniform (Song et al. 2021b)
karras       (σ̃²+σ_d²)/(σ̃σ_d)²           EDM's network output, σ̃ = σ/α (Karras et al. 2022, section 5)
min_snr      min(α²/σ², γ)                the image, or the noise below SNR γ = 5 (Hang et al. 2023)
============ ============================ =======================================================================
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.sde import SDE, standard_normal

Weighting = Literal["simple", "likelihood", "karras", "min_snr"]
Reduction = Literal["sum", "mean"]

MIN_SNR_GAMMA = 5.0


class Times(ABC):
    """A distribution of training times; on a discrete process, of times of its grid."""

    @abstractmethod
    def __call__(
        self, sde: SDE, n: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``n`` times in [t_min, T], shape ``(n,)``."""

    def correction(self, sde: SDE, t: Tensor) -> Tensor:
        """A factor on the loss, shape of ``t``: 1, for the distribution of times is part of the objective."""
        return torch.ones_like(t)


def _uniform(n: int, stratified: bool, device: torch.device | str | None, generator: torch.Generator | None) -> Tensor:
    """``n`` draws of U(0, 1); stratified, each lies in an n-th of its own, which lowers the variance of a batch."""
    drawn_on = generator.device if generator is not None else device
    u = torch.rand(n, device=drawn_on, generator=generator).to(device)
    if not stratified:
        return u
    # dealt out at random: in data of a fixed order the i-th example would always get the i-th part of the times
    return (torch.randperm(n, device=drawn_on, generator=generator).to(device) + u) / n


class UniformTimes(Times):
    """t ~ U(t_min, T); on a discrete process each time of the grid equally often.

    Args:
        stratified: spread the times of a batch evenly, one per n-th of the range, dealt out at random; each time alone
            is uniform over the range (in the spirit of Kingma et al. 2021, appendix I.1).
    """

    def __init__(self, stratified: bool = True) -> None:
        self.stratified = stratified

    def __call__(
        self, sde: SDE, n: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return sde.uniform_times(_uniform(n, self.stratified, device, generator))


class LogNormalTimes(Times):
    """Times whose noise level is log-normal: ln(σ/α) ~ N(mean, std²), limited to [t_min, T] (Karras et al. 2022).

    Args:
        mean: P_mean of the paper.
        std: P_std, positive.
        stratified: as in :class:`UniformTimes`, in the quantiles of the normal.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = True) -> None:
        if not math.isfinite(mean):
            raise ValueError(f"mean={mean}: must be finite")
        if not 0 < std < math.inf:
            raise ValueError(f"std={std}: must be positive")
        self.mean, self.std, self.stratified = mean, std, stratified

    def __call__(
        self, sde: SDE, n: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        u = _uniform(n, self.stratified, device, generator)
        normal = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        return sde.nearest_times(sde.time_at(torch.exp(self.mean + self.std * normal)).clamp(sde.t_min, sde.T))


class ImportanceTimes(Times):
    r"""Times with density p(t) ∝ g²/σ², for the likelihood weighting (Song et al. 2021b, section 4.4).

    That weighting is g²/σ² times the squared error of the noise, of which most comes from a few small t. Drawn like
    this, and divided by p(t) over the uniform density, the expected loss is the same and its variance much smaller.
    Since g²/σ² = d ln(σ²/α²)/dt for every linear SDE, it means drawing ln(σ/α) uniformly.

    Args:
        stratified: as in :class:`UniformTimes`.
    """

    def __init__(self, stratified: bool = True) -> None:
        self.stratified = stratified

    def __call__(
        self, sde: SDE, n: int, *, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        u = _uniform(n, self.stratified, device, generator)
        if sde.times is not None:
            times = sde.times.to(u)
            cumulative = self._rate(sde, times).cumsum(0)
            return times[torch.searchsorted(cumulative, u * cumulative[-1]).clamp(max=len(times) - 1)]
        low, high = self._log_levels(sde)
        return sde.time_at(torch.exp(low + (high - low) * u)).clamp(sde.t_min, sde.T)

    def correction(self, sde: SDE, t: Tensor) -> Tensor:
        """The uniform density over p(t); shape of ``t``."""
        if sde.times is not None:
            return self._rate(sde, sde.times.to(t)).mean() / self._rate(sde, t)
        low, high = self._log_levels(sde)
        return 2 * (high - low) / (sde.T - sde.t_min) / self._rate(sde, t)

    @staticmethod
    def _rate(sde: SDE, t: Tensor) -> Tensor:
        return (sde.diffusion(t) / sde.sigma(t)) ** 2

    @staticmethod
    def _log_levels(sde: SDE) -> tuple[float, float]:
        low, high = sde.noise_level(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).log().tolist()
        return low, high


class DenoisingScoreMatching:
    """The loss λ(t)·‖D(x_t, t) − x0‖², one value per example.

    Args:
        weighting: λ, see the table at the top of this file.
        times: where t is drawn from, with its correction of the loss; uniform in [t_min, T] if left out.
        reduction: ``"sum"`` or ``"mean"`` over the dimensions of an example.
        sigma_data: σ_d of the ``"karras"`` weighting; give the parameterization's.

    Raises:
        ValueError: for a weighting or reduction of another name, or a ``sigma_data`` that is not positive.
    """

    def __init__(
        self,
        weighting: Weighting = "simple",
        times: Times | None = None,
        reduction: Reduction = "sum",
        sigma_data: float = 0.5,
    ) -> None:
        for name, value, allowed in (("weighting", weighting, Weighting), ("reduction", reduction, Reduction)):
            if value not in get_args(allowed):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data={sigma_data}: must be positive")
        self.weighting = weighting
        self.times = times if times is not None else UniformTimes()
        self.reduction = reduction
        self.sigma_data = sigma_data

    def weight(self, sde: SDE, t: Tensor) -> Tensor:
        """λ(t); shape of ``t``."""
        snr = sde.noise_level(t) ** -2
        match self.weighting:
            case "simple":
                return snr
            case "likelihood":
                return snr * (sde.diffusion(t) / sde.sigma(t)) ** 2
            case "karras":
                return snr + self.sigma_data**-2
            case "min_snr":
                return snr.clamp(max=MIN_SNR_GAMMA)

    def draw(
        self,
        sde: SDE,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the loss of a batch draws: times t ``(B,)`` and standard normal noise z of ``shape`` ``(B, …)``."""
        t = self.times(sde, shape[0], device=device, generator=generator)
        return t, standard_normal(shape, device=device, generator=generator)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        drawn: tuple[Tensor, Tensor] | None = None,
        **cond: Any,
    ) -> Tensor:
        """The loss of each example, shape ``(B,)``.

        Args:
            denoiser: whose ``denoise`` is trained.
            x0: clean images or points, ``(B, …)``.
            generator: draws the times and the noise; PyTorch's global one if left out.
            drawn: the times and the noise, if they have been drawn by :meth:`draw` already.
            cond: passed to the denoiser, such as ``labels``.
        """
        sde = denoiser.sde
        t, noise = drawn if drawn is not None else self.draw(sde, x0.shape, device=x0.device, generator=generator)
        error = (denoiser.denoise(sde.perturb(x0, t, noise), t, **cond) - x0) ** 2
        per_example = error.flatten(1).sum(1) if self.reduction == "sum" else error.flatten(1).mean(1)
        return self.weight(sde, t) * self.times.correction(sde, t) * per_example
