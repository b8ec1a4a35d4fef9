"""Classifier-free guidance: away from what a model draws when it is asked for nothing (Ho & Salimans 2022)."""

from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.conditions import CONDITIONS
from diffusion_lightning.guidance.base import Contrast


class ClassifierFreeGuidance(Contrast):
    r""":math:`D_w = D(x, t) + w\,(D(x, t, c) - D(x, t))`: the unconditional model, and w times what c adds.

    Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, whose weight is w − 1. Of a network with a learnt null condition both
    are computed in one batch of twice the size, of any other denoiser by two calls. Called without a condition, it is
    the unconditional denoiser.

    Args:
        denoiser: a conditional one, trained also without its condition.
        weight: w; 1 is the unguided denoiser, at its cost, and 0 the unconditional one.
        interval: as in :class:`~diffusion_lightning.guidance.base.Guidance`.
        rescale: as there.
        threshold: as there.
    """

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if all(cond.get(name) is None for name in CONDITIONS):
            return self.ask(self.denoiser, x, t, **cond)
        return super().denoise(x, t, **cond)

    def other(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        rest = {name: value for name, value in cond.items() if name not in CONDITIONS}
        return self.ask(self.denoiser, x, t, **rest)

    def pair(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        null = self.denoiser.null(**cond)
        if null is None:
            return super().pair(x, t, **cond)
        both = {name: torch.cat([null[name], value]) for name, value in cond.items() if value is not None}
        denoised = self.ask(self.denoiser, torch.cat([x, x]), torch.cat([t, t]), **both)
        self.evaluations *= 2
        batch = x.shape[0]  # not len and chunk, which an exported program would take for constants
        return denoised[:batch], denoised[batch:]
