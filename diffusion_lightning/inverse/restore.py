"""Answers to "what was it?": examples of which something was measured, drawn from the posterior by any method."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser, check_conditions
from diffusion_lightning.inverse.dps import DPS
from diffusion_lightning.inverse.mmps import MMPS
from diffusion_lightning.inverse.operators import Operator
from diffusion_lightning.inverse.pgdm import PGDM
from diffusion_lightning.inverse.posterior import Posterior
from diffusion_lightning.inverse.posterior_sampler import PosteriorSampler
from diffusion_lightning.inverse.repaint import RePaint
from diffusion_lightning.inverse.replacement import Replacement
from diffusion_lightning.inverse.twisted_smc import TwistedSMC
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.samplers import DPMSolverPlusPlus, Sampler

METHODS: dict[str, type[Posterior] | type[PosteriorSampler]] = {
    method.__name__: method for method in (MMPS, PGDM, DPS, Replacement, RePaint, TwistedSMC)
}
"""What each name stands for."""

STEPS = 20
"""Of DPM-Solver++, where no sampler is named."""

Method: TypeAlias = "str | Callable[..., Denoiser | Sampler]"


def restore(
    denoiser: Denoiser,
    y: Tensor,
    operator: Operator,
    method: Method = "MMPS",
    num: int = 8,
    sampler: Sampler | None = None,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    batch_size: int = 64,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """Draw answers to y = A(x0) + n, n ~ N(0, σ_y² I), from p(x0 | y).

    Args:
        denoiser: the model, trained without any thought of the measurement.
        y: what was measured of one example, with or without a leading axis of one; or of B > 1 of them, ``(B, …)``.
        operator: A.
        method: a name, ``"MMPS"``, ``"PGDM"``, ``"DPS"``, ``"Replacement"``, ``"RePaint"`` or ``"TwistedSMC"``; its
            class; or what makes one, such as ``functools.partial(MMPS, iterations=5)``.
        num: how many answers to each measurement.
        sampler: draws through a method that is a denoiser; DPM-Solver++ of 20 steps if left out. Afterwards its ``nfe``
            is that of the last batch. A method that is a sampler draws by itself.
        noise_std: σ_y, in the units of ``y``; pictures are in [-1, 1].
        generator: draws the starts and the steps' noise.
        batch_size: how many answers are drawn at once.
        progress: show bars, of the answers and of each batch's steps.
        cond: passed to the denoiser: one entry for each measurement, such as ``labels`` ``(B,)``.

    Returns:
        ``(num, *shape)``, and ``(num, B, *shape)`` for B > 1 measurements.

    Raises:
        ValueError: for an unknown method, a measurement that does not fit the operator, fewer than one answer, a
            sampler for a method that is one, or what the method has to say.
    """
    for name, value in (("num", num), ("batch_size", batch_size)):
        if not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value}: must be a whole number of at least 1")
    maker = _maker(method)
    if (draws_itself := is_sampler(method)) and sampler is not None:
        raise ValueError("sampler: the method draws by itself: leave it out, or give the method its steps")
    sampler = sampler if sampler is not None else DPMSolverPlusPlus(STEPS)
    measured = _batch(y, operator).to(denoiser.device)
    shape = operator.shape_of(measured)
    check_conditions(cond, len(measured))

    total = num * len(measured)
    batches = []
    with progress_bar(total=total, desc="answers", unit="answer", disable=not (progress and total > batch_size)) as bar:
        for rows in (torch.arange(total) % len(measured)).split(batch_size):
            asked: dict[str, Any] = {
                name: value[rows] if isinstance(value, Tensor) else value for name, value in cond.items()
            }
            given = {"y": measured[rows], "operator": operator, "noise_std": noise_std}
            by, of = (maker(**given), denoiser) if draws_itself else (sampler, maker(denoiser, **given))
            batches.append(by(of, (len(rows), *shape), generator=generator, progress=progress, **asked))
            bar.update(len(rows))
    answers = torch.cat(batches)
    return answers if len(measured) == 1 else answers.unflatten(0, (num, len(measured)))


def is_sampler(method: Method) -> bool:
    """Whether a method draws by itself, instead of being a denoiser that samplers draw through."""
    kind = METHODS[method] if isinstance(method, str) else method
    kind = getattr(kind, "func", kind)  # of a functools.partial
    return isinstance(kind, type) and issubclass(kind, Sampler)


def _maker(method: Method) -> Callable[..., Any]:
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be among {', '.join(METHODS)}, a class, or what makes one")
    return METHODS[method]


def _batch(y: Tensor, operator: Operator) -> Tensor:
    """Measurements with the batch's axis."""
    if operator.axes is None or y.ndim == operator.axes + 1:
        return y
    if y.ndim == operator.axes:
        return y[None]
    raise ValueError(
        f"y: has shape {tuple(y.shape)}: a measurement of {type(operator).__name__} has {operator.axes} axes, or one "
        "more for several"
    )
