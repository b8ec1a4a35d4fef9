"""Answers beside what they are answers to, as tiles of one picture."""

import torch
from torch import Tensor


def spread(answers: Tensor) -> Tensor:
    """The standard deviation of answers ``(num, …)`` as a picture: black is 0, white 1."""
    return 2 * answers.std(0, correction=0) - 1


def tiles(given: Tensor, answers: Tensor, truth: Tensor | None = None) -> Tensor:
    """Given | answers | their mean | their :func:`spread` | the truth if known, ``(num + 3 or 4, 3, H, W)``.

    Args:
        given: what was measured, as a picture ``(C, H, W)`` in [-1, 1], C = 1 or 3; grey beside colour will do.
        answers: ``(num, C, H, W)``.
        truth: ``(C, H, W)``.
    """
    shown = [given, *answers, answers.mean(0), spread(answers), *([] if truth is None else [truth])]
    return torch.stack([tile.expand(3, -1, -1) for tile in shown])
