"""What a batch is noised by, and which of its conditions are dropped: functions of its seed and of each example's place
in the batch of all processes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_lightning.objective import DenoisingScoreMatching
from diffusion_lightning.philox import normal_rows, uniform_rows
from diffusion_lightning.randomness import Stream, derive_seed
from diffusion_lightning.sde import SDE, expand


def draw_rows(
    objective: DenoisingScoreMatching, sde: SDE, x: Tensor, size: int, seed: int, rank: int, world_size: int
) -> tuple[Tensor, Tensor]:
    """The times ``(B,)`` and the noise of x ``(B, …)``, which is (a part of) this process's rows of the batch of all.

    The times, a number for each example and spread evenly over the whole batch, each process draws for all; of the
    noise its own rows alone. An objective with a ``draw`` of its own draws everything for all, see :func:`draw_all`.

    Args:
        objective: which draws.
        sde: the forward process.
        x: the examples, on the device that draws.
        size: of this process's part of the batch, at least B.
        seed: of the batch.
        rank: of this process; row i of its part is row i·world_size + rank of all.
        world_size: number of processes.
    """
    if type(objective).draw is not DenoisingScoreMatching.draw:
        return draw_all(objective, sde, x, size, seed, rank, world_size)
    generator = torch.Generator(x.device).manual_seed(seed)
    places = torch.arange(rank, len(x) * world_size, world_size, device=x.device)
    t = objective.times(sde, size * world_size, device=x.device, generator=generator)[places]
    return t, normal_rows(derive_seed(seed, Stream.NOISE), places, x.shape[1:])


def draw_all(
    objective: DenoisingScoreMatching, sde: SDE, x: Tensor, size: int, seed: int, rank: int, world_size: int
) -> tuple[Tensor, Tensor]:
    """As :func:`draw_rows`, by drawing for all processes and keeping this one's rows, as the release of 0.2.0 did it.

    It takes time and memory for one batch of noise of every process.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    t, noise = objective.draw(sde, (size * world_size, *x.shape[1:]), device=x.device, generator=generator)
    rows = slice(rank, len(x) * world_size, world_size)
    return t[rows].contiguous(), noise[rows].contiguous()


def drop_conditions(
    conditions: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    probability: float,
    seed: int,
    rank: int,
    world_size: int,
) -> dict[str, Tensor]:
    """Conditions ``(B, …)`` by name, of each example all replaced by those that stand for none with a probability
    (Ho & Salimans 2022, algorithm 1).

    Args:
        conditions: of this process's rows of the batch of all.
        null: those that stand for none, in the same shapes.
        probability: in [0, 1].
        seed: of the batch, and of no other draw.
        rank: of this process; row i of its part is row i·world_size + rank of all.
        world_size: number of processes.
    """
    first = next(iter(conditions.values()))
    places = torch.arange(rank, len(first) * world_size, world_size, device=first.device)
    dropped = uniform_rows(seed, places) < probability
    return {name: torch.where(expand(dropped, value), null[name], value) for name, value in conditions.items()}
