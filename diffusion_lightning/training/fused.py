"""torch's fused optimizers on a GPU: one kernel for all weights, and one that can leave a step out by itself."""

from typing import Any

import torch
from lightning.pytorch import Trainer

FUSED = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
"""Those whose fused form takes ``found_inf``."""


def fuse(optimizer: Any, device: torch.device, trainer: Trainer) -> None:
    """Let an optimizer of torch's that has a fused form use it on a GPU, if nobody has chosen; else do nothing.

    Not in ``16-mixed``, where the gradients would be clipped while they are scaled. It computes the same, but for
    rounding, and its state is the same.

    Args:
        optimizer: with its state, if it goes on from a checkpoint.
        device: of its weights.
        trainer: that it steps in.
    """
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if device.type != "cuda" or scaled or type(optimizer) not in FUSED:
        return
    made = optimizer.defaults
    if any(made[name] is not None for name in ("fused", "foreach")) or any(
        made.get(name) for name in ("differentiable", "capturable")
    ):
        return
    for group in optimizer.param_groups:
        group["fused"] = True
    optimizer._step_supports_amp_scaling = True
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].to(device, torch.float32)
