"""The end of a training whose loss or gradient stays infinite or not a number, and what is written down about it."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

if TYPE_CHECKING:
    from diffusion_lightning.module import ScoreModule


class NonFiniteError(FloatingPointError):
    """Too many optimizer steps in a row had a loss or a gradient that is not finite."""

    @classmethod
    def of(cls, module: "ScoreModule") -> "NonFiniteError":
        """The error, after each process has written the last step's times and gradient norms to the run's folder.

        Args:
            module: in the middle of an optimizer step, its gradients not cleared yet.
        """
        trainer = module.trainer
        named = [(name, p.grad) for name, p in module.network.named_parameters() if p.grad is not None]
        times = module.last_times
        found = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": trainer.fit_loop.batch_idx,
            "skipped_in_a_row": module.max_skipped_steps,
            "times": times.tolist() if times is not None else None,
            "gradient_norms": {name: torch.linalg.vector_norm(gradient).item() for name, gradient in named},
        }
        path = Path(trainer.log_dir or trainer.default_root_dir) / f"non_finite.rank{trainer.global_rank}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(found, sort_keys=False))
            where = f"the times and the gradients' norms are in {path}"
        except OSError as error:
            where = f"{path} could not be written ({error.strerror})"
        return cls(
            f"step {trainer.global_step}: the loss or its gradient was not finite {module.max_skipped_steps} times in "
            f"a row; {where}. The weights are those of the last good step: resume with --ckpt_path last, for example "
            "with a smaller learning rate"
        )
