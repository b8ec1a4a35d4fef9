"""Autoguidance: away from the mistakes that a worse model makes more of (Karras et al. 2024)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.guidance.base import Contrast
from diffusion_lightning.sde import SDE


class AutoGuidance(Contrast):
    r""":math:`D_w = D_0(x, t, c) + w\,(D_1(x, t, c) - D_0(x, t, c))` with a worse model :math:`D_0`.

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself" (arXiv:2406.02507), eq. 3. The worse
    model is of the same task and of the same kind of mistakes: smaller, trained for less long, or a shorter average of
    the same weights. Both are asked for the same condition, so that guidance does not trade variety for it.

    Args:
        denoiser: the better model.
        worse: the other one, of an equal process. The path of its checkpoint stands for it where a model's guidance is
            chosen (``ScoreModule(guidance=…)``, ``sample(guidance=…)``, the commands), which read it.
        weight: w; 1 is the better model alone, at its cost.
        interval: as in :class:`~diffusion_lightning.guidance.base.Guidance`.
        rescale: as there.
        threshold: as there.

    Raises:
        ValueError: if the processes differ, or for an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        worse: str | Denoiser,
        weight: float = 1.0,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(denoiser, weight, interval, rescale, threshold)
        if isinstance(worse, str):
            raise ValueError(f"worse={worse!r}: must be a Denoiser, such as load_denoiser reads from a checkpoint")
        if not _equal(denoiser.sde, worse.sde):
            raise ValueError(
                f"worse: its {type(worse.sde).__name__} is another process than the {type(denoiser.sde).__name__} of "
                "the denoiser: must be equal, for both are shown the same x"
            )
        self.worse = worse

    def other(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.ask(self.worse, x, t, **cond)


def _equal(first: SDE, second: SDE) -> bool:
    """Whether two processes have the same times, and the same α and σ at some of them."""
    if (first.T, first.t_min) != (second.T, second.t_min):
        return False
    t = first.timesteps(8)
    return torch.equal(first.alpha(t), second.alpha(t)) and torch.equal(first.sigma(t), second.sigma(t))
