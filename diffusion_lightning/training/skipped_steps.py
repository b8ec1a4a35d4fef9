"""Optimizer steps that are left out, because their loss or gradient is not finite.

Who decides on a GPU must not wait for it: torch's fused optimizers take ``found_inf``, a number on the device, and
change nothing where it is 1. Of any other optimizer the host has to know, before the step, whether there is one.
"""

from typing import Any

import torch
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
        kept: whether the last step was none of them: known here, or a truth value on the device.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.begin()

    def begin(self, total: int = 0, in_a_row: int = 0) -> None:
        """Count from these numbers on."""
        self.kept: bool | Tensor = True
        self._total, self._in_a_row = total, in_a_row
        self._counts: Tensor | None = None  # on the device: in all, in a row, the longest row since they were read

    @property
    def total(self) -> int:
        """Steps that have been left out so far."""
        return self._total if self._counts is None else int(self._counts[0])

    @property
    def in_a_row(self) -> int:
        """The last of them, one after the other."""
        return self._in_a_row if self._counts is None else int(self._counts[1])

    def look(self, norm: Tensor, optimizer: Any, trainer: Trainer, network: nn.Module, times: Tensor | None) -> None:
        """Leave this step out if the gradient's ``norm`` is not finite.

        Args:
            norm: of the gradient over all processes.
            optimizer: about to step.
            trainer: in the middle of the step.
            network: with the gradients.
            times: that the last batch was trained at.

        Raises:
            NonFiniteError: if it is one too many in a row.
        """
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self._tell(norm.isfinite(), optimizer)
            if (trainer.global_step + 1) % self.most == 0:
                self.read(trainer, network, times)
            return
        self.kept = bool(norm.isfinite())
        if self.kept:
            self._in_a_row = 0
            return
        self._total += 1
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or scaler.get_scale() <= 1:
            self._in_a_row += 1
        if self._in_a_row >= self.most:
            raise NonFiniteError.of(trainer, network, times, self._in_a_row)
        if self._in_a_row == 1:
            rank_zero_warn(f"step {trainer.global_step}: the loss or its gradient is not finite; the step is skipped")
        optimizer.zero_grad(set_to_none=True)  # without gradients an optimizer changes nothing

    def read(self, trainer: Trainer, network: nn.Module, times: Tensor | None) -> None:
        """Look at what was counted on the device since the last time; nothing where the host has counted.

        Raises:
            NonFiniteError: if there were too many in a row.
        """
        if self._counts is None:
            return
        total, in_a_row, longest = self._counts.tolist()
        if longest >= self.most:
            raise NonFiniteError.of(trainer, network, times, longest)
        if total > self._total:
            steps = f"{total - self._total} of the last steps before step {trainer.global_step + 1}"
            rank_zero_warn(f"{steps}: the loss or its gradient was not finite; they are skipped")
        self._total = total
        self._counts[2] = in_a_row

    def _tell(self, finite: Tensor, optimizer: Any) -> None:
        """Tell a fused optimizer, which neither changes a weight nor counts a step where ``found_inf`` is 1."""
        if self._counts is None:
            self._counts = torch.tensor([self._total, self._in_a_row, self._in_a_row], device=finite.device)
        total, in_a_row, longest = self._counts
        bad = ~finite
        total += bad
        in_a_row.add_(1).mul_(bad)
        torch.maximum(longest, in_a_row, out=longest)
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        self.kept = finite
