r"""Log-likelihood and bits per dimension by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

The ODE dx/dt = v(x, t) carries p_t along, so by the instantaneous change of variables (Chen et al. 2018, eq. 8)

.. math:: \ln p_{t_{\min}}(x) = \ln p_T(z) + \int_{t_{\min}}^{T} \nabla\cdot v(x_t, t)\,\mathrm{d}t ,

where z is what x becomes at T. The divergence is exact, at the price of one vector–Jacobian product for each dimension,
or estimated by ε·(∂v/∂x)ε with E[εεᵀ] = I, one product in all (Skilling 1989; Hutchinson 1990; Grathwohl et al. 2019).
"""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser, check_conditions
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers.ode import AdaptiveMethod, check_tolerances, integrate
from diffusion_lightning.sde import standard_normal

Divergence = Literal["hutchinson", "exact"]
Probe = Literal["rademacher", "gaussian"]

LEVELS = 256
"""Of an 8-bit image."""


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    divergence: Divergence = "hutchinson",
    noise: Probe = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: AdaptiveMethod = "dopri5",
    t_min: float | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **cond: Any,
) -> tuple[Tensor, Tensor]:
    """ln p(x) under the model, and the latent code of x.

    The solver's error is controlled for every example on its own, so the result depends on the other examples of a
    batch within the tolerances only; the probes are drawn for all of ``x`` at once and do not depend on ``batch_size``.

    Args:
        denoiser: the model.
        x: images or points, ``(B, …)``, on any device.
        divergence: ``"hutchinson"``, an unbiased estimate by one probe for each example, or ``"exact"``, which costs as
            many vector–Jacobian products an evaluation as there are dimensions.
        noise: the probe's distribution, ``"rademacher"`` (±1, of lower variance) or ``"gaussian"``.
        rtol: relative tolerance, positive.
        atol: absolute tolerance, positive, in units of x and in nats per dimension.
        method: an adaptive one of torchdiffeq's.
        t_min: where x is placed in time; the SDE's own ``t_min`` if left out.
        generator: draws the probes.
        batch_size: how many examples are solved at once; all if left out.
        progress: show a bar.
        cond: what the denoiser is conditioned on; tensors ``(B, …)`` are split with x.

    Returns:
        Nats ``(B,)``, and z, the shape of ``x``: the state at T, which
        ``ProbabilityFlowODE(denoise=False)(denoiser, x.shape, x_T=z)`` takes back to x.

    Raises:
        ValueError: for a setting out of its range, an x that is not finite, a condition not one for each example, or a
            guided denoiser.
        FloatingPointError: if the solver's step shrinks to nothing.
    """
    if denoiser.is_guided:
        raise ValueError(
            f"{type(denoiser).__name__}: has no likelihood, for a guided flow comes from the prior of no density that "
            "is known: give the denoiser inside of it"
        )
    for name, value, allowed in (
        ("divergence", divergence, Divergence),
        ("noise", noise, Probe),
        ("method", method, AdaptiveMethod),
    ):
        if value not in get_args(allowed):
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")
    check_tolerances(rtol, atol)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (B, …), of at least one example and one dimension")
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinite values: all must be finite")
    sde = denoiser.sde
    first = sde.t_min if t_min is None else t_min
    sde.check_t_min(first)
    check_conditions(cond, len(x))
    weight = next(denoiser.parameters(), None)
    x = x.to(denoiser.device, x.dtype if weight is None else weight.dtype)
    probe = _probe(x, noise, generator) if divergence == "hutchinson" else None
    size = batch_size or len(x)
    nats, latents = [], []
    with progress_bar(total=len(x), desc="likelihood", unit="example", disable=not progress or size >= len(x)) as bar:
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            given = {name: v[part] if isinstance(v, Tensor) and v.ndim else v for name, v in cond.items()}
            log_prob, z = _solve(
                denoiser,
                x[part],
                None if probe is None else probe[part],
                torch.tensor([first, sde.T]).to(x),
                progress=progress,
                rtol=rtol,
                atol=atol,
                method=method,
                **given,
            )
            nats.append(log_prob)
            latents.append(z)
            bar.update(len(z))
    return torch.cat(nats), torch.cat(latents)


def bits_per_dim(
    denoiser: Denoiser, images: Tensor, *, generator: torch.Generator | None = None, **settings: Any
) -> Tensor:
    r"""An upper bound of −log₂ P(image) per dimension, in bits, with uniform dequantization (Theis et al. 2016).

    For 8-bit levels k and u ~ U[0, 1) the model's density is taken at x = (k + u)/128 − 1, a cell of width 1/128:

    .. math:: -\log_2 P(k) \le \mathbb{E}_u\big[-\log_2 p(x)\big] + d\log_2 128, \qquad
              \text{bits/dim} = 7 - \frac{\ln p(x)}{d \ln 2} .

    The offset is 7, not 8, because images in [-1, 1] have cells twice as wide as images in [0, 1].

    Args:
        denoiser: a model of images in [-1, 1].
        images: ``(B, C, H, W)``, uint8, or floats k/127.5 − 1 as the data modules give them.
        generator: draws u and the probes.
        settings: those of :func:`log_likelihood`, with ``batch_size``, ``progress`` and conditions.

    Returns:
        Bits per dimension ``(B,)``.

    Raises:
        ValueError: if the images are not of 8 bits, or as in :func:`log_likelihood`.
    """
    levels = _levels(images)
    drawn_on = generator.device if generator is not None else levels.device
    u = torch.rand(levels.shape, device=drawn_on, generator=generator).to(levels)
    x = 2 / LEVELS * (levels + u) - 1
    nats, _ = log_likelihood(denoiser, x, generator=generator, **settings)
    return math.log2(LEVELS / 2) - nats / (x[0].numel() * math.log(2))


def _solve(
    denoiser: Denoiser, x: Tensor, probe: Tensor | None, times: Tensor, *, progress: bool, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Nats and latents of one batch. The second part of the state is the integral in nats per dimension."""
    solver = {name: settings.pop(name) for name in ("rtol", "atol", "method")}
    dimension = x[0].numel()
    with torch.inference_mode(False):
        # copies, for what was made in inference mode, where Lightning validates, cannot be differentiated
        x, times, probe = x.clone(), times.clone(), None if probe is None else probe.clone()
        cond = {name: v.to(x.device, copy=True) if isinstance(v, Tensor) else v for name, v in settings.items()}

    def derivative(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = state[0].detach().requires_grad_()
            velocity = denoiser.probability_flow(at, t.to(at).expand(len(at)), **cond)
            traces = _divergence(velocity, at, probe)
        return velocity.detach(), traces / dimension

    def worst(error: tuple[Tensor, Tensor]) -> Tensor:
        """Of the examples, so that each meets the tolerances, in whatever company it is solved."""
        state, integral = error
        return torch.maximum(state.flatten(1).square().mean(1).sqrt(), integral.abs()).max()

    bar = progress_bar(total=100.0, desc="ODE", unit="%", disable=not progress)
    with torch.inference_mode(False), torch.no_grad(), _uncompiled(), bar:
        states, integrals = integrate(
            denoiser.sde, derivative, (x, x.new_zeros(len(x))), times, bar=bar, norm=worst, **solver
        )
        return denoiser.sde.prior_log_prob(states[-1]) + dimension * integrals[-1], states[-1]


def _uncompiled() -> AbstractContextManager:
    """Inside, a compiled network runs as it was written: what is compiled can go backward once only."""
    # asked where it may be compiled at all, since to ask loads the compiler
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _divergence(velocity: Tensor, x: Tensor, probe: Tensor | None) -> Tensor:
    """∇·v for each example ``(B,)``, exact if there is no probe."""
    if probe is not None:
        return (torch.autograd.grad(velocity, x, probe)[0] * probe).flatten(1).sum(1)
    columns = velocity.flatten(1).sum(0)  # examples do not mix, so the sum's gradient is each one's own
    diagonal = [
        torch.autograd.grad(column, x, retain_graph=True)[0].flatten(1)[:, i] for i, column in enumerate(columns)
    ]
    return torch.stack(diagonal).sum(0)


def _probe(x: Tensor, noise: Probe, generator: torch.Generator | None) -> Tensor:
    normal = standard_normal(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    return normal if noise == "gaussian" else torch.where(normal < 0, -1.0, 1.0).to(x)


def _levels(images: Tensor) -> Tensor:
    """The 8-bit levels 0 … 255 of images as floats."""
    if images.dtype == torch.uint8:
        return images.float()
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}: must be uint8, or floats k/127.5 − 1, k = 0 … 255")
    exact = (images + 1) * 127.5
    levels = exact.round()
    if not (((exact - levels).abs() < 1e-2) & (levels >= 0) & (levels < LEVELS)).all():
        raise ValueError(
            "images are not of 8 bits: bits per dimension are defined for uint8, or floats k/127.5 − 1, k = 0 … 255"
        )
    return levels
