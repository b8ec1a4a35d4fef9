"""What all guidance shares: a denoiser inside, an interval of noise levels, and what keeps the result in its range."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.sde import expand


class Guidance(Denoiser):
    """A denoiser that is steered, in an interval of noise levels.

    Args:
        denoiser: what is steered; outside of the interval it answers alone, bit for bit, at its own cost.
        interval: noise levels (low, high) in σ/α, in which it is guided (Kynkäänniemi et al. 2024, arXiv:2404.07724);
            everywhere if left out.
        rescale: φ in [0, 1]: how far the standard deviation of each guided image is brought back to that of the
            unguided one (Lin et al. 2024, arXiv:2305.08891, eq. 15 and 16); not at all if left out.
        threshold: dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, section 2.3): the share, in (0, 1], of
            an image's values that is within the limit which it is clipped to and divided by; the limit is at least 1,
            the range of images. Not at all if left out.

    Attributes:
        evaluations: of the denoisers inside, in the last call.
        has_steered: whether any call has been at a noise level in the interval.

    Raises:
        ValueError: for an argument out of its range.
    """

    is_guided = True
    has_steered = False

    def __init__(
        self,
        denoiser: Denoiser,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(denoiser.sde)
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
            raise ValueError(
                f"interval={list(interval)}: must be two noise levels σ/α, the lower one first, such as [0.2, 3]"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale={rescale}: must be in [0, 1]")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold}: must be in (0, 1], or null for none")
        self.denoiser = denoiser
        self.interval = tuple(interval) if interval is not None else None
        self.rescale = rescale
        self.threshold = threshold

    @property
    @abstractmethod
    def is_neutral(self) -> bool:
        """Whether it is so weak that the denoiser inside answers alone."""

    @abstractmethod
    def steer(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """The guided answer and the unguided one; sets :attr:`evaluations`."""

    @property
    def num_classes(self) -> int | None:
        return self.denoiser.num_classes

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        inside = self._inside(t)
        # in a program that is exported nothing may depend on the content of a tensor
        if self.is_neutral or not (inside is None or torch.compiler.is_compiling() or inside.any()):
            return self.ask(self.denoiser, x, t, **cond)
        self.has_steered = True
        guided, own = self.steer(x, t, **cond)
        guided = self._in_range(guided, own)
        return guided if inside is None else torch.where(expand(inside, x), guided, own)

    def ask(self, denoiser: Denoiser, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """A denoiser's answer; sets :attr:`evaluations` to what it cost."""
        denoised = denoiser.denoise(x, t, **cond)
        self.evaluations = denoiser.evaluations
        return denoised

    def _inside(self, t: Tensor) -> Tensor | None:
        """Which times are in the interval; None if there is none."""
        if self.interval is None:
            return None
        level = self.sde.noise_level(t)
        return (level >= self.interval[0]) & (level <= self.interval[1])

    def _in_range(self, guided: Tensor, own: Tensor) -> Tensor:
        if self.rescale > 0:
            ratio = own.flatten(1).std(1) / guided.flatten(1).std(1)
            guided = guided * expand(self.rescale * ratio + 1 - self.rescale, guided)
        if self.threshold is not None:
            limit = torch.quantile(guided.flatten(1).abs().float(), self.threshold, dim=1).clamp(min=1).to(guided)
            limit = expand(limit, guided)
            guided = guided.clamp(-limit, limit) / limit
        return guided


GuidanceCallable: TypeAlias = Callable[[Denoiser], Guidance]
"""Makes a guidance of the denoiser that it is to steer: a class, or a ``functools.partial`` of one."""


class Contrast(Guidance):
    r"""A denoiser guided by another one: :math:`D_w = D_0 + w\,(D_1 - D_0)`, of which :math:`D_1` is steered.

    Args:
        denoiser: :math:`D_1`.
        weight: w, any finite number: 1 is :math:`D_1` alone, bit for bit and at its own cost, 0 is :math:`D_0`.
        interval: as in :class:`Guidance`; outside of it w is 1.
        rescale: as there.
        threshold: as there.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weight: float = 1.0,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(denoiser, interval, rescale, threshold)
        if not math.isfinite(weight):
            raise ValueError(f"weight={weight}: must be a finite number; 1 is without guidance")
        self.weight = weight

    @property
    def is_neutral(self) -> bool:
        return self.weight == 1

    @abstractmethod
    def other(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """:math:`D_0`; sets :attr:`evaluations`."""

    def pair(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """:math:`D_0` and :math:`D_1`, by two calls; sets :attr:`evaluations`."""
        own = self.ask(self.denoiser, x, t, **cond)
        spent = self.evaluations
        other = self.other(x, t, **cond)
        self.evaluations += spent
        return other, own

    def steer(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        if self.weight == 0 and self.interval is None and self.rescale == 0:
            other = self.other(x, t, **cond)
            return other, other  # the denoiser that is steered has no part in it
        other, own = self.pair(x, t, **cond)
        return other + self.weight * (own - other), own
