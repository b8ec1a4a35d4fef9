"""The probability-flow ODE, solved by torchdiffeq (Song et al. 2021, section 4.3)."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.floats import exact_float32, has_float64
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers.base import Sampler, kept_states
from diffusion_lightning.sde import SDE

AdaptiveMethod = Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FixedMethod = Literal["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]


State = TypeVar("State", Tensor, tuple[Tensor, Tensor])


def integrate(
    sde: SDE,
    derivative: Callable[[Tensor, State], State],
    state: State,
    times: Tensor,
    *,
    method: AdaptiveMethod | FixedMethod,
    rtol: float,
    atol: float,
    bar: tqdm,
    norm: Callable[[State], Tensor] | None = None,
) -> State:
    """Solve d state/dt = derivative(t, state) through ``times``, rising or falling, within those of the process.

    The derivative is computed without autocast, and without TF32: they resolve 1/256 and 1/1024, far less than the
    tolerances.

    Args:
        sde: whose noise level tells the progress.
        derivative: of a time ``()`` and the state.
        state: at the first time: a tensor or two.
        times: ``(n,)``; the steps of a fixed-step method.
        method: of torchdiffeq.
        rtol: relative tolerance of the adaptive methods.
        atol: absolute tolerance of the adaptive methods.
        bar: of 100 %, moved on by the noise level on a logarithmic scale.
        norm: of the error in units of the tolerances, a scalar; its root mean square if left out.

    Returns:
        The state at each time: like ``state`` with an axis ``(n,)`` in front.

    Raises:
        FloatingPointError: if the solver's step shrinks to nothing.
        ValueError: for a method that needs float64 on a device that has none.
    """
    if "adams" in method and not has_float64(times.device):
        raise ValueError(f"method={method!r}: needs float64, which {times.device.type} has not: take rk4, or the CPU")
    options: dict[str, Any] = {}
    if method in get_args(AdaptiveMethod):
        # adaptive solvers step past the end and interpolate back, but beyond its times there is no process
        options["step_t"] = times[-1:]
        if norm is not None:
            options["norm"] = norm
        if not has_float64(times.device):
            options["dtype"] = torch.float32  # of the clock, which is float64 elsewhere
    elif method == "explicit_adams":
        options["max_order"] = 4  # torchdiffeq's 12 diverges here at any number of steps worth taking
    earliest, latest = times.min(), times.max()
    # reading a time waits for the device
    span = math.nan if bar.disable else math.log(sde.noise_level(times[0]) / sde.noise_level(times[-1]))

    def failure(reason: object) -> FloatingPointError:
        return FloatingPointError(
            f"{method} could not reach rtol={rtol}, atol={atol} ({reason}): "
            "the network's output is not finite or not smooth; try larger tolerances or Heun"
        )

    def observed(t: Tensor, state: State) -> State:
        if t.device.type == "cpu" and t.isnan():  # elsewhere the solver itself finds out a step later
            raise failure("its step is not a number")
        if not bar.disable:
            done = math.log(sde.noise_level(times[0]) / sde.noise_level(t)) / span
            bar.update(max(0.0, round(100 * done, 1) - bar.n))
        # the guess of the first step looks ahead as far as it likes
        return derivative(t.clamp(earliest, latest), state)

    from torchdiffeq import odeint  # here, for it loads all of SciPy

    try:
        with torch.autocast(times.device.type, enabled=False), exact_float32():
            return odeint(observed, state, times, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as error:  # torchdiffeq's way of saying that the step size underflowed
        raise failure(error) from error


def velocity(denoiser: Denoiser, cond: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt of the probability flow, the derivative that :func:`integrate` takes, given these conditions."""
    return lambda t, x: denoiser.probability_flow(x, t.to(x).expand(len(x)), **cond)


def check_tolerances(rtol: float, atol: float) -> None:
    """Raise a ValueError naming the tolerance that is not positive."""
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not 0 < tolerance < math.inf:
            raise ValueError(f"{name}={tolerance}: must be positive")


class ProbabilityFlowODE(Sampler):
    r"""Solves dx/dt = α'·D + σ'·ẑ = f·x − ½g²·score from T to t_min, then takes the posterior mean D(x, t_min).

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
        ValueError: for an unknown method, a tolerance that is not positive, or ``steps`` below 1; when called, for an
            Adams method on a device without float64.
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
        check_tolerances(rtol, atol)
        if not (steps >= 1 and steps % 1 == 0):
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
        trajectory: bool | int,
        **cond: Any,
    ) -> Tensor:
        times = self.times(denoiser.sde, self.steps, x)
        kept = kept_states(len(times), trajectory) if trajectory else [0, self.steps]
        is_adaptive = self.method in get_args(AdaptiveMethod)
        if is_adaptive:  # whose steps do not depend on the times at which the state is asked for
            times = times[kept]

        solver: dict[str, Any] = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "bar": bar}
        states = integrate(denoiser.sde, velocity(denoiser, cond), x, times, **solver)
        if self.denoise:
            with exact_float32():
                states[-1] = denoiser.denoise(states[-1], times[-1].expand(len(x)), **cond)
        if not trajectory:
            return states[-1]
        return states if is_adaptive or len(kept) == len(states) else states[kept]

    def bar(self, sde: SDE, disable: bool) -> tqdm:
        return progress_bar(total=100.0, desc=f"{type(self).__name__} ({self.method})", unit="%", disable=disable)
