"""What a batch is noised by: a function of its seed and of each example's place in the batch of all processes."""

import torch
from torch import Tensor

from diffusion_lightning.objective import DenoisingScoreMatching
from diffusion_lightning.sde import SDE


def draw_rows(
    objective: DenoisingScoreMatching, sde: SDE, x: Tensor, size: int, seed: int, rank: int, world_size: int
) -> tuple[Tensor, Tensor]:
    """The times ``(B,)`` and the noise of x ``(B, …)``, which is (a part of) this process's rows of the batch of all.

    Each process draws for all, and keeps its rows: memory for one batch of noise of every process, for a moment.

    Args:
        objective: which draws.
        sde: the forward process.
        x: the examples, on the device that draws.
        size: of this process's part of the batch, at least B.
        seed: of the batch.
        rank: of this process; row i of its part is row i·world_size + rank of all.
        world_size: number of processes.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    whole = (size * world_size, *x.shape[1:])
    t, noise = objective.draw(sde, whole, device=x.device, generator=generator)
    rows = slice(rank, len(x) * world_size, world_size)
    return t[rows].contiguous(), noise[rows].contiguous()
