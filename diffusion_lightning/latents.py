r"""Latents: what each example becomes at T along the probability-flow ODE, and back (Song et al. 2021, section 4.3).

The ODE has the marginals of the process and no noise, so it is a map between data and N(0, σ(T)²·I) that can be run
both ways: :func:`encode` and :func:`decode` are inverse of each other to the solver's tolerance. Between two latents
lies the great circle, along which a normal vector keeps its length (Shoemake 1985; Song et al. 2021a, arXiv:2010.02502,
eq. 67):

.. math:: z_w = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\, z_0 + \frac{\sin(w\,\theta)}{\sin\theta}\, z_1, \qquad
          \cos\theta = \frac{\langle z_0, z_1\rangle}{\lVert z_0\rVert\, \lVert z_1\rVert} .
"""

from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser, check_conditions
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers.ode import AdaptiveMethod, ProbabilityFlowODE, check_tolerances, integrate
from diffusion_lightning.sde import expand


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    method: AdaptiveMethod = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """The latents z of examples: the state at T of the probability flow that starts from x at t_min.

    Args:
        denoiser: the model; a guided one has a flow, too, and so latents of its own.
        x: images or points, ``(B, …)``.
        method: an adaptive one of torchdiffeq's.
        rtol: relative tolerance, positive.
        atol: absolute tolerance, positive, in units of x.
        t_min: where x is placed in time; the SDE's own ``t_min`` if left out.
        progress: show a bar.
        cond: passed to the denoiser, one entry for each example.

    Returns:
        z, of the shape of ``x``, on the denoiser's device; N(0, σ(T)²·I) if x is distributed as the model's samples.

    Raises:
        ValueError: for a setting out of its range, an x that is not finite, or a condition not one for each example.
        FloatingPointError: if the solver's step shrinks to nothing.
    """
    check_tolerances(rtol, atol)
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinite values: all must be finite")
    check_conditions(cond, len(x))
    sde = denoiser.sde
    first = sde.t_min if t_min is None else t_min
    sde.check_t_min(first)
    x = x.to(denoiser.device)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return denoiser.probability_flow(x, t.to(x).expand(len(x)), **cond)

    times = torch.tensor([first, sde.T]).to(x)
    with torch.no_grad(), progress_bar(total=100.0, desc="encode", unit="%", disable=not progress) as bar:
        return integrate(sde, velocity, x, times, method=method, rtol=rtol, atol=atol, bar=bar)[-1]


def decode(
    denoiser: Denoiser,
    z: Tensor,
    *,
    method: AdaptiveMethod = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """The examples of latents, the inverse of :func:`encode`; arguments, shapes and errors as there."""
    solver = ProbabilityFlowODE(method, rtol, atol, denoise=False, t_min=t_min)
    return solver(denoiser, z.shape, x_T=z.to(denoiser.device), progress=progress, **cond)


def slerp(z0: Tensor, z1: Tensor, weights: Tensor) -> Tensor:
    """Points on the great circles from z0 to z1, at w = 0 and w = 1; on the line between them where they are parallel.

    Args:
        z0: ``(B, …)``.
        z1: of that shape.
        weights: w, ``(n,)``.

    Returns:
        ``(n, B, …)``.
    """
    lengths = z0.flatten(1).norm(dim=1) * z1.flatten(1).norm(dim=1)
    angle = ((z0 * z1).flatten(1).sum(1) / lengths).clamp(-1, 1).acos()
    w = weights.to(z0)[:, None]
    is_straight = angle.sin().abs() < 1e-4
    sine = torch.where(is_straight, 1.0, angle.sin())
    first = torch.where(is_straight, 1 - w, ((1 - w) * angle).sin() / sine)
    last = torch.where(is_straight, w, (w * angle).sin() / sine)
    return torch.stack([expand(a, z0) * z0 + expand(b, z1) * z1 for a, b in zip(first, last, strict=True)])


def interpolate(denoiser: Denoiser, x0: Tensor, x1: Tensor, frames: int = 16, **settings: Any) -> Tensor:
    """Examples on the way from x0 to x1: encoded, :func:`slerp`, decoded.

    Args:
        denoiser: the model.
        x0: ``(B, …)``.
        x1: of that shape.
        frames: how many, the ends among them, at least 2.
        settings: those of :func:`encode`; conditions are one for each of the B, for both of its ends.

    Returns:
        ``(frames, B, …)``; the first and the last are x0 and x1, to the solver's tolerance.

    Raises:
        ValueError: if the shapes differ, for fewer than two frames, or as :func:`encode` does.
    """
    if x0.shape != x1.shape:
        raise ValueError(f"x1 has shape {tuple(x1.shape)}: must be {tuple(x0.shape)}, that of x0")
    if not (frames >= 2 and frames % 1 == 0):
        raise ValueError(f"frames={frames}: must be at least 2, the ends")
    given = {name: v for name, v in settings.items() if isinstance(v, Tensor) and v.ndim}
    check_conditions(given, len(x0))
    twice = {name: torch.cat([v, v]) for name, v in given.items()}
    z0, z1 = encode(denoiser, torch.cat([x0, x1]), **settings | twice).chunk(2)
    z = slerp(z0, z1, torch.linspace(0, 1, frames, dtype=torch.float64))
    every = {name: v.repeat(frames, *[1] * (v.ndim - 1)) for name, v in given.items()}
    return decode(denoiser, z.flatten(0, 1), **settings | every).unflatten(0, (frames, len(x0)))
