"""Seeds as pure functions of where a run stands.

A training step may depend on (seed, rank, epoch, batch) and on nothing that happened before it. So every random draw of
a step comes from a generator seeded by `derive_seed` with those numbers and the `Stream` it belongs to:

    generator = torch.Generator(device).manual_seed(derive_seed(seed, epoch, batch, Stream.FLIP))

What belongs to an example rather than to a process depends on its place in the batch of all processes instead of the
rank: then W processes with batches of B train on exactly what one process with batches of W·B does. Its noise is drawn
by that place alone (`philox`). What is a number or two for each example (its time, its flip) every process draws for
the whole batch alike, and takes the rows of its own examples, `drawn[rank::world_size]`.
"""

import os
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 2**64 - 1


class Stream(IntEnum):
    """What a draw is for. Two purposes with one number would draw the same noise: give each new one its own member."""

    ORDER = 0
    FLIP = 1
    STEP = 2
    VALIDATION = 3
    PREDICTION = 4
    GRID = 5
    FID = 6
    POINTS = 7
    DENOISING = 8
    FIELD = 9
    DISTANCE = 10
    DROPOUT = 11
    AUGMENTATION = 12
    NOISE = 13
    CONDITION = 14
    EVALUATION = 17
    SUBSET = 18
    CONDITION_GRID = 19
    RESTORATION_GRID = 20
    MEASUREMENT = 21


def global_seed() -> int:
    """The seed that ``lightning.seed_everything`` was given; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derive_seed(*parts: int) -> int:
    """Hash integers to a seed: the same on every machine, Python and process, unrelated for different `parts`.

    The finalizer of splitmix64 (Steele, Lea & Flood 2014) chained over the parts; their number and order count.

    Args:
        parts: any integers; they are taken modulo 2⁶⁴.

    Returns:
        An integer in [0, 2⁶³), which `torch.Generator.manual_seed` accepts on every device.
    """
    state = len(parts)
    for part in parts:
        state = ((state ^ (int(part) & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def draw_some(count: int, total: int, seed: int) -> Tensor:
    """Which ``count`` of ``total`` things are taken where not all are wanted: drawn without replacement.

    Sets are often sorted, so their first things stand for nothing but themselves. For one ``total`` and seed, the
    smaller draws are the beginnings of the larger ones.

    Args:
        count: how many; all if there are not so many.
        total: how many there are.
        seed: decides which, and their order.

    Returns:
        int64 (min(count, total),), different numbers in [0, total), in random order.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.SUBSET))
    return torch.randperm(total, generator=generator)[:count]
