"""A step of the optimizer: which optimizer, how long its gradient may be, what leaves it out, the average after it."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.schedule import ANY_LENGTH, advance, with_scheduler
from diffusion_lightning.training.sharding import is_sharded, of_all, warn_of_split_matrices
from diffusion_lightning.training.skipped_steps import SkippedSteps


class TakesSteps(LightningModule):
    """Clips the gradient, steps the optimizer unless the gradient is not finite, then the EMA and the schedule."""

    network: nn.Module
    ema: EMA
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    clip_norm: float | None
    gradient_norm: Tensor | None
    """Of the last optimizer step, before clipping."""
    skipping: SkippedSteps
    last_times: Tensor | None
    """Of the last batch that was trained on, ``(B,)``."""

    @property
    def skipped_steps(self) -> int:
        """How many steps of this training have been left out so far."""
        return self.skipping.total

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the trainer's setting if it has one, else to ``clip_norm``; drop a gradient that is not finite."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                "trainer.precision='16-mixed' with a fused optimizer: its gradients would be clipped while they are "
                "scaled: give fused=False, or precision='bf16-mixed'"
            )
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        self.gradient_norm = of_all(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        self.skipping.look(self.gradient_norm, optimizer, self.trainer, self.network, self.last_times)
        if self.skipping.kept is False:
            return
        limit = self.clip_norm if gradient_clip_val is None else gradient_clip_val
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val=limit, gradient_clip_algorithm="value")
        elif limit:
            nn.utils.clip_grads_with_norm_(parameters, limit, self.gradient_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then the EMA's."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(kept=self.skipping.kept)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; those of a metric have been stepped in :meth:`on_train_epoch_end`."""
        if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            advance(scheduler)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and the scheduler if there is one."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        if is_sharded(self.network):
            warn_of_split_matrices(optimizer)
        run_steps = ANY_LENGTH if self._trainer is None else self.trainer.estimated_stepping_batches
        return with_scheduler(optimizer, self.lr_scheduler, run_steps)
