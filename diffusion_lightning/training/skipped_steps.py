"""Optimizer steps that are left out, because their loss or gradient is not finite."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from diffusion_lightning.training.non_finite import NonFiniteError


class SkippedSteps:
    """Leaves such steps out, counts them, and ends the training after too many in a row.

    In ``16-mixed`` those do not count in a row by which the loss's scale is found.

    Args:
        most: how many in a row end the training, at least 1.

    Attributes:
        total: steps that have been left out so far.
        in_a_row: the last of them, one after the other.
        is_last: whether the last step was one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.begin()

    def begin(self, total: int = 0, in_a_row: int = 0) -> None:
        """Count from these numbers on."""
        self.total, self.in_a_row, self.is_last = total, in_a_row, False

    def look(self, norm: Tensor, optimizer: Any, trainer: Trainer, network: nn.Module, times: Tensor | None) -> bool:
        """Leave this step out if the gradient's ``norm`` is not finite: without gradients an optimizer changes nothing.

        Args:
            norm: of the gradient over all processes.
            optimizer: about to step.
            trainer: in the middle of the step.
            network: with the gradients.
            times: that the last batch was trained at.

        Returns:
            Whether it is left out.

        Raises:
            NonFiniteError: if it is one too many in a row.
        """
        self.is_last = not norm.isfinite()
        if not self.is_last:
            self.in_a_row = 0
            return False
        self.total += 1
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() <= 1:
            self.in_a_row += 1
        if self.in_a_row >= self.most:
            raise NonFiniteError.of(trainer, network, times, self.in_a_row)
        if self.in_a_row == 1:
            rank_zero_warn(f"step {trainer.global_step}: the loss or its gradient is not finite; the step is skipped")
        optimizer.zero_grad(set_to_none=True)
        return True
