"""Losses and gradients that are infinite or not a number, too often: the end of a training."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn

from diffusion_lightning.training.sharding import whole_of


class NonFiniteError(FloatingPointError):
    """Too many optimizer steps in a row had a loss or a gradient that is not finite."""

    @classmethod
    def of(cls, trainer: Trainer, network: nn.Module, times: Tensor | None, skipped: int) -> "NonFiniteError":
        """The error, after each process has written what it was at to ``non_finite.rank….yaml`` in the run's folder.

        Args:
            trainer: in the middle of an optimizer step.
            network: with that step's gradients.
            times: that the last batch was trained at.
            skipped: how many steps in a row.
        """
        named = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
        found = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": trainer.fit_loop.batch_idx,
            "skipped_in_a_row": skipped,
            "times": times.tolist() if times is not None else None,
            "gradient_norms": {name: whole_of(torch.linalg.vector_norm(grad)).item() for name, grad in named},
        }
        path = Path(trainer.log_dir or trainer.default_root_dir) / f"non_finite.rank{trainer.global_rank}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(found, sort_keys=False))
            where = f"the times and the gradients' norms are in {path}"
        except OSError as error:
            where = f"{path} could not be written ({error.strerror})"
        return cls(
            f"step {trainer.global_step}: the loss or its gradient was not finite {skipped} times in a row; {where}. "
            "No checkpoint has anything of them: resume with --ckpt_path last, for example with a smaller learning rate"
        )
