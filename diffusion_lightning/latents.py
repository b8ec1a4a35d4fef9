r"""Latents: what each example becomes at T along the probability-flow ODE, and back (Song et al. 2021, section 4.3).

The ODE has the marginals of the process and no noise, so it is a map between data and N(0, σ(T)²·I) that can be run
both ways: :func:`encode` and :func:`decode` are inverse of each other to the solver's tolerance. Between two latents
lies the great circle, along which a normal vector keeps its length (Shoemake 1985; Song et al. 2021a, arXiv:2010.02502,
eq. 67):

.. math:: z_w = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\, z_0 + \frac{\sin(w\,\theta)}{\sin\theta}\, z_1, \qquad
          \cos\theta = \frac{\langle z_0, z_1\rangle}{\lVert z_0\rVert\, \lVert z_1\rVert} .

The prior's scale cancels here: the circle through c·z is c times that through z. Its centre is 0, the prior's mean.
That of the latents is α(T)·μ, μ the data's mean, of which in the middle up to √2 are left of what should be 1: beside
σ(T) that is as little as all else that is left of the data at T.
"""

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser, check_conditions
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers.ode import AdaptiveMethod, check_tolerances, integrate, velocity
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
    """The latents z of examples: the state at T of the probability flow that is x at t_min.

    They are N(0, σ(T)²·I) if x is distributed as p at t_min, noise of σ(t_min) included. Pictures are without that
    noise, and where they are even their latents are too short: ``denoiser.sde.perturb`` adds it. The solver's error is
    controlled for every example on its own.

    Args:
        denoiser: the model; a guided one has a flow, too, and so latents of its own, though of no density.
        x: images or points, ``(B, …)``, on any device.
        method: an adaptive one of torchdiffeq's.
        rtol: relative tolerance, positive.
        atol: absolute tolerance, positive, in units of x.
        t_min: where x is placed in time; the SDE's own ``t_min`` if left out.
        progress: show a bar.
        cond: passed to the denoiser, such as ``labels`` ``(B,)``.

    Returns:
        z, of the shape of ``x``, on the denoiser's device.

    Raises:
        ValueError: for a setting out of its range, an x that is not finite, or a condition not one for each example.
        FloatingPointError: if the solver's step shrinks to nothing.
    """
    solver: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "t_min": t_min, "progress": progress}
    return _carried("encode", denoiser, x, cond, **solver)


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
    """The examples that latents are of, the inverse of :func:`encode`; arguments, result and errors as there."""
    solver: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "t_min": t_min, "progress": progress}
    return _carried("decode", denoiser, z, cond, **solver)


def slerp(z0: Tensor, z1: Tensor, weights: Tensor) -> Tensor:
    """Points on the great circles from z0, at w = 0, to z1, at w = 1; on the line between them where they are parallel.

    Args:
        z0: ``(B, …)``.
        z1: of that shape.
        weights: w, ``(n,)``.

    Returns:
        ``(n, B, …)``.
    """
    angle = F.cosine_similarity(z0.flatten(1), z1.flatten(1)).clamp(-1, 1).acos()
    w = weights.to(z0)[:, None]
    is_straight = angle.sin() < 1e-4
    sine = torch.where(is_straight, 1.0, angle.sin())
    first = torch.where(is_straight, 1 - w, ((1 - w) * angle).sin() / sine)
    last = torch.where(is_straight, w, (w * angle).sin() / sine)
    return torch.stack([expand(a, z0) * z0 + expand(b, z1) * z1 for a, b in zip(first, last, strict=True)])


def interpolate(
    denoiser: Denoiser,
    x0: Tensor,
    x1: Tensor,
    frames: int = 16,
    *,
    method: AdaptiveMethod = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    batch_size: int = 256,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """Examples on the way from x0 to x1: encoded, :func:`slerp`, decoded.

    Where the ends have conditions of their own, given as pairs such as ``labels=(of_x0, of_x1)``, each is encoded by
    its own, and the frame at w is decoded by (1 − w)·D(x | c0) + w·D(x | c1), at twice the cost. As scores are linear
    in D, its score is that of p(x | c0)^(1 − w)·p(x | c1)^w: from one condition to the other without a leap.

    Args:
        denoiser: the model.
        x0: ``(B, …)``.
        x1: of that shape.
        frames: how many, the ends among them, at least 2.
        method: as :func:`encode` has it, like the three that follow.
        rtol: relative tolerance.
        atol: absolute tolerance.
        t_min: where x0 and x1 are placed in time.
        batch_size: how many frames are decoded at once.
        progress: show bars.
        cond: passed to the denoiser: one entry for each of the B, for both of its ends, or pairs of such.

    Returns:
        ``(frames, B, …)``; the first and the last are x0 and x1, to the solver's tolerance.

    Raises:
        ValueError: if the shapes differ, for fewer than two frames, or as :func:`encode` does.
    """
    if x0.shape != x1.shape:
        raise ValueError(f"x1 has shape {tuple(x1.shape)}: must be {tuple(x0.shape)}, that of x0")
    if not (frames >= 2 and frames % 1 == 0):
        raise ValueError(f"frames={frames}: must be at least 2, the ends")
    if not (batch_size >= 1 and batch_size % 1 == 0):
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    solver: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "t_min": t_min, "progress": progress}
    of_x0, of_x1 = ({name: v[end] if isinstance(v, tuple) else v for name, v in cond.items()} for end in (0, 1))
    z0, z1 = encode(denoiser, x0, **solver, **of_x0), encode(denoiser, x1, **solver, **of_x1)
    weights = torch.linspace(0, 1, frames, dtype=torch.float64)
    z, weights = slerp(z0, z1, weights).flatten(0, 1), weights.to(z0).repeat_interleave(len(x0))
    is_way = any(isinstance(v, tuple) for v in cond.values())
    decoded = []
    for rows in torch.arange(len(z)).split(batch_size):
        here, there = (_of_examples(of_end, rows % len(x0)) for of_end in (of_x0, of_x1))
        field = _Between(denoiser, weights[rows], there) if is_way else denoiser
        decoded.append(decode(field, z[rows], **solver, **here))
    return torch.cat(decoded).unflatten(0, (frames, len(x0)))


def _of_examples(cond: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The conditions of these examples."""
    return {name: v[rows] if isinstance(v, Tensor) and v.ndim else v for name, v in cond.items()}


class _Between(Denoiser):
    """(1 − w)·D(x | c0) + w·D(x | c1) for weights w ``(B,)``, asked given c0; of no density."""

    is_guided = True

    def __init__(self, denoiser: Denoiser, weights: Tensor, there: dict[str, Any]) -> None:
        super().__init__(denoiser.sde)
        self.denoiser, self.weights, self.there = denoiser, weights, there

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        first, last = self.denoiser.denoise(x, t, **cond), self.denoiser.denoise(x, t, **self.there)
        return first + expand(self.weights, x) * (last - first)


def _carried(
    name: str,
    denoiser: Denoiser,
    state: Tensor,
    cond: dict[str, Any],
    *,
    method: AdaptiveMethod,
    rtol: float,
    atol: float,
    t_min: float | None,
    progress: bool,
) -> Tensor:
    """Where the flow takes a state: from t_min to T to ``encode`` it, from T to t_min to ``decode`` it."""
    sde = denoiser.sde
    given = "x" if name == "encode" else "z"
    if method not in get_args(AdaptiveMethod):
        raise ValueError(f"method={method!r}: must be one of {', '.join(get_args(AdaptiveMethod))}")
    check_tolerances(rtol, atol)
    if state.ndim < 2 or state.numel() == 0:
        raise ValueError(f"{given} has shape {tuple(state.shape)}: must be (B, …), of at least one example")
    if not state.isfinite().all():
        raise ValueError(f"{given} holds NaN or infinite values: all must be finite")
    check_conditions(cond, len(state))
    if t_min is not None:
        sde.check_t_min(t_min)
    weight = next(denoiser.parameters(), None)
    state = state.to(denoiser.device, state.dtype if weight is None else weight.dtype)
    times = torch.tensor([sde.t_min if t_min is None else t_min, sde.T]).to(state)
    if name == "decode":
        times = times.flip(0)

    def worst(error: Tensor) -> Tensor:
        """Of the examples, so that each meets the tolerances, in whatever company it is solved."""
        return error.flatten(1).square().mean(1).sqrt().max()

    solver: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "norm": worst}
    with torch.no_grad(), progress_bar(total=100.0, desc=name, unit="%", disable=not progress) as bar:
        return integrate(sde, velocity(denoiser, cond), state, times, bar=bar, **solver)[-1]
