"""DPM-Solver++, the multistep solver of the probability-flow ODE for the denoised image (Lu et al. 2022b)."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from diffusion_lightning.samplers.noise_level import Denoise, RhoSpacedSampler


class DPMSolverPlusPlus(RhoSpacedSampler):
    r"""Multistep DPM-Solver++ of order 1, 2 (the paper's 2M) or 3; one evaluation a step.

    With λ = −ln σ̃ the ODE is dx̃/dλ = D − x̃, whose exact solution over a step h = λ_s − λ_t is

    .. math:: \tilde x_s = e^{-h}\tilde x_t + \int_0^h e^{u-h} D(\lambda_t + u)\,\mathrm{d}u .

    D is extrapolated as a polynomial through its last values, of degree ``order`` − 1 as soon as there are enough of
    them (Lu et al. 2022b, eq. 9 and algorithm 2). For order 3 the parabola is integrated exactly, where the authors'
    code counts its curvature half. It runs in the variables of
    :mod:`~diffusion_lightning.samplers.noise_level`, so it fits every linear SDE. The last step, to noise level 0, is
    of infinite length in λ: it returns D. Order 1 is DDIM on this grid.

    Args:
        steps: N, the last included.
        order: 1, 2 or 3. 2 is the usual choice.
        rho: ρ ≥ 1, the exponent of the grid of noise levels; larger puts more steps at low noise. Karras et al.'s 7 is
            close to the paper's uniform λ, which is the limit of large ρ.
        t_min: where the grid ends before the last step; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3, or ``rho`` is below 1.
    """

    def __init__(
        self, steps: int = 20, order: Literal[1, 2, 3] = 2, rho: float = 7.0, t_min: float | None = None
    ) -> None:
        super().__init__(steps, rho, t_min)
        if order not in (1, 2, 3):
            raise ValueError(f"order={order}: must be 1, 2 or 3")
        self.order = order

    def walk(
        self, denoise: Denoise, x: Tensor, levels: list[float], generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, float]]:
        known: list[tuple[float, Tensor]] = []  # (λ, D), the newest first
        for level, next_level in zip(levels, [*levels[1:], 0.0], strict=True):
            known = [(-math.log(level), denoise(x, level)), *known[: self.order - 1]]
            if next_level == 0:
                x = known[0][1]
            else:
                x = next_level / level * x + self._integral(known, math.log(level / next_level))
            yield x, next_level

    @staticmethod
    def _integral(known: list[tuple[float, Tensor]], h: float) -> Tensor:
        """∫₀ʰ e^{u−h} D(λ + u) du, D extrapolated through the known values, the newest of which is at u = 0."""
        weight = -math.expm1(-h)  # ∫₀ʰ e^{u−h} du
        match known:
            case [(_, d0)]:
                return weight * d0
            case [(l0, d0), (l1, d1)]:
                # the line's value in the middle of the step, as in the paper
                return weight * (d0 + h / 2 * (d0 - d1) / (l0 - l1))
            case [(l0, d0), (l1, d1), (l2, d2)]:
                # Newton's parabola, integrated exactly
                slope, earlier_slope = (d0 - d1) / (l0 - l1), (d1 - d2) / (l1 - l2)
                curvature = (slope - earlier_slope) / (l0 - l2)
                linear = h - weight  # ∫₀ʰ e^{u−h} u du
                square = h**2 - 2 * linear  # ∫₀ʰ e^{u−h} u² du
                return weight * d0 + linear * (slope + (l0 - l1) * curvature) + square * curvature
        raise AssertionError(f"{len(known)} values known")
