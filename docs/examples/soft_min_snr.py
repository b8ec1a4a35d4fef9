"""A weighting of one's own: λ(t), and nothing else of the objective."""

from torch import Tensor

from diffusion_lightning import SDE, DenoisingScoreMatching, Times
from diffusion_lightning.objective import Reduction


class SoftMinSNR(DenoisingScoreMatching):
    """λ = 1/(1/SNR + 1/γ): that of the noise's error where SNR = α²/σ² is far below γ, of the image's far above."""

    def __init__(self, gamma: float = 5.0, times: Times | None = None, reduction: Reduction = "sum") -> None:
        super().__init__(times=times, reduction=reduction)
        if not gamma > 0:
            raise ValueError(f"gamma={gamma}: must be positive")
        self.gamma = gamma

    def weight(self, sde: SDE, t: Tensor) -> Tensor:
        return 1 / (sde.noise_level(t) ** 2 + 1 / self.gamma)
