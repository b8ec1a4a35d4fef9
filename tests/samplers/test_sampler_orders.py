"""The orders of convergence, measured: by how much halving the step divides the error.

On Gaussian data the probability flow is known exactly: in x̃ = x/α it scales x̃ − μ by √(s² + σ̃²), and the denoised
image is then μ + s²/(s² + σ̃²)·(x̃ − μ). So the error is that of the solver alone, in double precision. It is
c·hᵖ·(1 + O(h)); h ≈ 0.1 … 0.3 in ln σ̃ at the numbers of steps below, so the observed p is the order within 0.2.

Fixed-step methods of torchdiffeq (the deterministic Euler among them) and Heun on five processes are measured in
test_sampler_gaussian.py.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_models import ALL_SDES, SDES, gaussian, generator, mixture, prior_std
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.samplers import DDIM, DPMSolverPlusPlus, Heun, ProbabilityFlowODE, Sampler
from diffusion_lightning.sde import SDE, VPSDE, KarrasSDE

MEAN, STD = torch.tensor([1.5, -0.7], dtype=torch.float64), 0.6
COARSE, FINE = 40, 80

# each with n steps to t_min, and one more to the denoised image; and the order
METHODS: dict[str, tuple[Callable[[int], Sampler], int]] = {
    "dpm-solver++ 1": (lambda n: DPMSolverPlusPlus(n + 1, order=1), 1),
    "dpm-solver++ 2": (lambda n: DPMSolverPlusPlus(n + 1, order=2), 2),
    "dpm-solver++ 3": (lambda n: DPMSolverPlusPlus(n + 1, order=3), 3),
    "heun": (lambda n: Heun(n + 1), 2),
    "ddim": (lambda n: DDIM(n + 1), 1),
}
# DDIM on a short grid takes unequal steps, as its times are rounded to those of the grid
PAIRS = [(name, kind) for name, sde in ALL_SDES.items() for kind in METHODS if kind != "ddim" or sde.times is None]


def start(sde: SDE) -> Tensor:
    return prior_std(sde) * torch.randn(6, 2, dtype=torch.float64, generator=generator())


def exact(sde: SDE) -> Tensor:
    """Where the flow takes :func:`start`, denoised at t_min."""
    ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    top, end = sde.noise_level(ends).tolist()
    centred = start(sde) / sde.alpha(ends)[0] - MEAN
    return MEAN + STD**2 / (STD**2 + end**2) * math.sqrt((STD**2 + end**2) / (STD**2 + top**2)) * centred


@functools.cache
def error(name: str, kind: str, steps: int) -> float:
    sde = ALL_SDES[name]
    x = METHODS[kind][0](steps)(gaussian(sde, MEAN, STD), (6, 2), x_T=start(sde))
    return (x - exact(sde)).square().mean().sqrt().item()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name: str, kind: str) -> None:
    order = METHODS[kind][1]
    assert error(name, kind, FINE) < error(name, kind, COARSE) < 0.1
    assert math.log2(error(name, kind, COARSE) / error(name, kind, FINE)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ALL_SDES)
def test_a_higher_order_is_better_at_equal_steps(name: str) -> None:
    """And the third order's ratio is above the second's 4: 7.3 … 8.6 are seen, and 4.1 … 4.4."""
    for steps in (COARSE, FINE):
        first, second, third = (error(name, f"dpm-solver++ {order}", steps) for order in (1, 2, 3))
        assert third < second < first
    assert error(name, "dpm-solver++ 3", COARSE) / error(name, "dpm-solver++ 3", FINE) > 4


@pytest.mark.parametrize("name", [name for name in ALL_SDES if name not in SDES])
def test_heun_and_dpm_solver_are_of_second_order_on_a_mixture(name: str) -> None:
    """Towards the same limit, which a solver of high order finds in x/α on EDM's process of the same noise levels."""
    sde = ALL_SDES[name]
    model, x_T = mixture(sde, scale=6, dtype=torch.float64), start(sde)
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    karras = mixture(KarrasSDE(*sde.noise_level(ends).tolist()), scale=6, dtype=torch.float64)
    limit = ProbabilityFlowODE("dopri8", 1e-9, 1e-10)(karras, (6, 2), x_T=x_T / sde.alpha(ends)[1])
    for sampler in (Heun, DPMSolverPlusPlus):
        coarse, fine = (
            (sampler(n + 1)(model, (6, 2), x_T=x_T) - limit).square().mean().sqrt().item() for n in (COARSE, FINE)
        )
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.3)  # as for Heun in test_sampler_gaussian.py


# ---- DPM-Solver++ step by step


class OfLambda(Denoiser):
    """D(x, t) = c(λ)·(1, 1), a given function of λ = −ln σ̃ alone: the ODE is linear with a known right-hand side."""

    def __init__(self, sde: SDE, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(sde)
        self.function = function

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.function(-self.sde.noise_level(t).log())[:, None].expand_as(x)


def walked(sde: SDE, order: int, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """λ_0 … λ_{N−1} of the sampler's grid and x̃ at each."""
    sampler = DPMSolverPlusPlus(8, order=order)  # type: ignore[arg-type]
    levels = torch.tensor(sampler.levels(sde), dtype=torch.float64)
    frames = sampler(OfLambda(sde, function), (1, 2), x_T=start(sde)[:1], trajectory=True)
    return -levels.log(), frames[:-1, 0, 0] / sde.alpha(sde.time_at(levels))


@pytest.mark.parametrize("name", ALL_SDES)
@pytest.mark.parametrize("order", [1, 3])
def test_a_step_is_exact_for_a_polynomial_of_one_degree_less(order: int, name: str) -> None:
    """∫₀ʰ e^{u−h} D(λ + u) du by quadrature, once there are enough values to know the polynomial."""

    def polynomial(lam: Tensor) -> Tensor:
        return 0.7 + (0.3 * lam - 0.05 * lam**2 if order == 3 else 0 * lam)

    lam, x = walked(ALL_SDES[name], order, polynomial)
    for i in range(order - 1, len(lam) - 1):
        h = (lam[i + 1] - lam[i]).item()
        u = torch.linspace(0, h, 2001, dtype=torch.float64)
        fresh = torch.trapezoid(torch.exp(u - h) * polynomial(lam[i] + u), u).item()  # to h³/12/2000² ≲ 1e-5
        assert x[i + 1].item() == pytest.approx(math.exp(-h) * x[i].item() + fresh, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("name", ALL_SDES)
def test_order_two_is_algorithm_2_of_the_paper(name: str) -> None:
    """x̃_i = σ̃_i/σ̃_{i−1}·x̃_{i−1} − (e^{−h_i} − 1)·D_i

    with D_i = (1 + 1/2r)·D(t_{i−1}) − 1/2r·D(t_{i−2}) and r = h_{i−1}/h_i.
    """
    function = torch.tanh
    lam, x = walked(ALL_SDES[name], 2, function)
    h, d = lam.diff(), function(lam)
    for i in range(1, len(lam)):
        if i == 1:
            mixed = d[0]
        else:
            r = h[i - 2] / h[i - 1]
            mixed = (1 + 1 / (2 * r)) * d[i - 1] - 1 / (2 * r) * d[i - 2]
        expected = torch.exp(-h[i - 1]) * x[i - 1] - torch.expm1(-h[i - 1]) * mixed
        # the levels of the grid are rounded to single precision, so that the first is not quite that of T
        torch.testing.assert_close(x[i], expected, rtol=1e-6, atol=1e-9)


def test_order_one_is_ddim_on_the_same_grid() -> None:
    """EDM's process has its times, ρ-spaced, at the solver's noise levels, in single precision."""
    sde = KarrasSDE()
    model, x_T = mixture(sde, dtype=torch.float64), start(sde)
    one = DPMSolverPlusPlus(20, order=1)(model, (6, 2), x_T=x_T, trajectory=True)
    other = DDIM(20)(model, (6, 2), x_T=x_T, trajectory=True)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # and both are Euler's method in the noise level
    levels = [*DPMSolverPlusPlus(20).levels(sde), 0.0]
    x = x_T
    for level, following in itertools.pairwise(levels):
        slope = (x - model.denoise(x, torch.full((6,), level, dtype=torch.float64))) / level
        x = x + (following - level) * slope
    torch.testing.assert_close(one[-1], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_few_steps_fall_back_on_the_orders_they_have_values_for(order: int) -> None:
    """One step is D at T; two steps are of first order; three of second, whatever is asked for."""
    sde = VPSDE()
    model, x_T = gaussian(sde, MEAN, STD), start(sde)
    results = {(n, o): DPMSolverPlusPlus(n, order=o)(model, (6, 2), x_T=x_T) for n in (1, 2, 3, 4) for o in (1, 2, 3)}
    torch.testing.assert_close(results[1, order], model.denoise(x_T, torch.full((6,), sde.T, dtype=torch.float64)))
    assert torch.equal(results[2, order], results[2, 1])
    assert torch.equal(results[3, order], results[3, min(order, 2)])
    assert len({tuple(results[4, o].flatten().tolist()) for o in (1, 2, 3)}) == 3
