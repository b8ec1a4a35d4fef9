"""A process of one's own: α and σ suffice, all else is derived from them."""

import torch
from torch import Tensor

from diffusion_lightning import SDE


class LinearLogSNR(SDE):
    """α² + σ² = 1, and λ = ln(α²/σ²) falls linearly from ``first`` at t = 0 to ``last`` at t = 1."""

    def __init__(self, first: float = 10.0, last: float = -10.0) -> None:
        if not last < first:
            raise ValueError(f"first={first}, last={last}: need last < first")
        self.first, self.last = first, last

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        return self.first + t * (self.last - self.first)
