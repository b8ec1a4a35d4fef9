"""The probability-flow ODE, solved by torchdiffeq (Song et al. 2021, section 4.3)."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchdiffeq import odeint
from tqdm import tqdm

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers.base import Sampler

AdaptiveMethod = Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FixedMethod = Literal["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]


class ProbabilityFlowODE(Sampler):
    r"""Solves dx/dt = f·x − ½g²·score from T to t_min, then takes the posterior mean D(x, t_min).

    The last evaluation removes the noise of σ(t_min) that the ODE rightly leaves. The result is a deterministic
    function of the start.

    Args:
        method: one of torchdiffeq's, adaptive (which choose their steps by the tolerances) or fixed-step.
        rtol: relative tolerance of the adaptive methods, positive.
        atol: absolute tolerance of the adaptive methods, positive, in units of x.
        steps: steps of the fixed-step methods; for all, the frames of a trajectory besides the start.
        denoise: whether to end with D(x, t_min); without it decoding inverts encoding exactly.
        t_min: where to stop; the SDE's own ``t_min`` if left out. The tutorial stops at 1e-3.

    Raises:
        ValueError: for an unknown method, a tolerance that is not positive, or ``steps`` below 1.
        FloatingPointError: when called, if the solver's step shrinks to nothing.
    """

    def __init__(
        self,
        method: AdaptiveMethod | FixedMethod = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int = 100,
        denoise: bool = True,
        t_min: float | None = None,
    ) -> None:
        super().__init__(t_min)
        methods = get_args(AdaptiveMethod) + get_args(FixedMethod)
        if method not in methods:
            raise ValueError(f"method={method!r}: must be one of {', '.join(methods)}")
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            if not tolerance > 0:
                raise ValueError(f"{name}={tolerance}: must be positive")
        if steps < 1:
            raise ValueError(f"steps={steps}: at least 1 step is needed")
        self.method = method
        self.rtol, self.atol = rtol, atol
        self.steps = steps
        self.denoise = denoise

    def run(
        self,
        denoiser: Denoiser,
        x: Tensor,
        bar: tqdm,
        *,
        generator: torch.Generator | None,
        trajectory: bool,
        **cond: Any,
    ) -> Tensor:
        times = self.times(denoiser.sde, self.steps, x)
        options: dict[str, Any] | None = None
        if self.method in get_args(AdaptiveMethod):
            if not trajectory:
                times = times[[0, -1]]
            # adaptive solvers step past the end and interpolate back, but before t_min there is no process
            options = {"step_t": times[-1:]}
        elif self.method == "explicit_adams":
            options = {"max_order": 4}  # torchdiffeq's 12 diverges here at any number of steps worth taking
        span = math.log(denoiser.sde.noise_level(times[0]) / denoiser.sde.noise_level(times[-1]))

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            if not bar.disable:  # reading t waits for the device
                done = math.log(denoiser.sde.noise_level(times[0]) / denoiser.sde.noise_level(t)) / span
                bar.update(max(0.0, round(100 * done, 1) - bar.n))
            return denoiser.probability_flow(x, t.to(x).expand(len(x)), **cond)

        try:
            states = odeint(velocity, x, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        except AssertionError as error:  # torchdiffeq's way of saying that the step size underflowed
            raise FloatingPointError(
                f"{self.method} could not reach rtol={self.rtol}, atol={self.atol} ({error}): "
                "the network's output is not finite or not smooth; try larger tolerances or Heun"
            ) from error
        if self.denoise:
            states[-1] = denoiser.denoise(states[-1], times[-1].expand(len(x)), **cond)
        return states if trajectory else states[-1]

    def bar(self, disable: bool) -> tqdm:
        return progress_bar(total=100.0, desc=f"{type(self).__name__} ({self.method})", unit="%", disable=disable)
