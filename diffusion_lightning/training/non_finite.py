"""NaN and infinity: the end of a training of such, and what is told of samples with any."""

from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
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


def count_broken(samples: Tensor) -> int:
    """How many of samples ``(B, …)`` have a value that is not finite."""
    return int((~samples.isfinite().flatten(1).all(1)).sum())


def broken_samples(broken: int, total: int) -> str:
    """How many samples are not finite, and why that may be; without an end."""
    few = f"all {total:,}" if broken == total else f"{broken:,} of {total:,}"
    return (
        f"{few} samples are not finite (NaN or infinite): the weights have diverged (train with a smaller learning "
        "rate), or the sampler's settings do not suit them (more steps, a smaller snr)"
    )


def warn_of_broken(broken: int, total: int, what_follows: str = "pictures show each as a tile with a cross") -> None:
    """Warn of samples that are not finite, if there are any; and say what becomes of them."""
    if broken:
        rank_zero_warn(f"{broken_samples(broken, total)}; {what_follows}")
