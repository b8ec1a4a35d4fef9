"""``torch.compile`` where it pays and where there is a compiler that works."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from diffusion_lightning.messages import inform, warn

Compile = bool | Literal["auto"]
"""Compile the network: always, never, or where :func:`pays` says so."""


def check_choice(choice: Compile) -> None:
    """Raise a ValueError if ``compile`` is none of its values."""
    if not (isinstance(choice, bool) or choice == "auto"):
        raise ValueError(f"compile={choice!r}: must be true, false or auto")


def compile_in_place(
    network: nn.Module, choice: Compile, device: torch.device, blocks: Sequence[nn.Module] | None = None
) -> None:
    """Compile a network that is about to run on ``device``, if the choice is to do so; its state dict stays the same.

    Of a network that is going to be split over the processes each block is compiled by itself: between them the
    processes exchange weights, which no program can hold.

    An automatic choice is told in one line. Where compiling does not work, one warning says why, and the network runs
    as it is.

    Args:
        network: the whole.
        choice: whether to.
        device: where it is about to run.
        blocks: its parts that are made whole one at a time, if it is going to be split.
    """
    wanted = pays(device) if choice == "auto" else choice
    reason = _why_not(device) if wanted else None
    if reason is not None:
        warn(f"compile: no on {device.type}, it does not work here, and the network runs uncompiled: {reason}")
        return
    if wanted and blocks == []:
        warn("compile: no, the network is split over the processes and has no nn.ModuleList, of blocks to compile")
        return
    if wanted and blocks is not None:
        # equal code, of which each block may be another program: torch would give up after eight
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(blocks))
    for module in (network,) if blocks is None else blocks:
        if wanted:
            module.compile()
    if choice == "auto":
        parts = "" if blocks is None else f", {len(blocks)} blocks"
        inform(f"compile: {f'yes{parts}' if wanted else 'no'} on {device.type}")


def pays(device: torch.device) -> bool:
    """Whether compiling is worth the minutes it takes: on a GPU that Triton supports, of capability 7.0 or above.

    A CPU runs our U-Nets no faster compiled: there the convolutions take the time, and they are the same.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def _why_not(device: torch.device) -> str | None:
    """What a trivial function's compilation fails with, on one line; None if it works."""
    try:
        torch.compile(_probe)(torch.zeros(8, device=device))
    except Exception as error:  # of many types: no compiler, one that fails, no Triton, a cache that cannot be written
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
