"""What every sampler shares: checks, counting, progress, trajectories. The algorithms are in the files beside."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning.denoiser import Denoiser, check_conditions
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.sde import SDE


class _Counted(Denoiser):
    """Passes every evaluation on to a denoiser, and counts it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.sde)
        self._inside = [denoiser]  # not as a module: its weights are not this one's
        self.evaluations = 0

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        (denoiser,) = self._inside
        denoised = denoiser.denoise(x, t, **cond)
        self.evaluations += denoiser.evaluations
        return denoised


class Sampler(ABC):
    """Runs the noising backwards, from a draw of the prior to an image. Holds settings only.

    Args:
        t_min: where to stop; the SDE's own ``t_min`` if left out.

    Attributes:
        nfe: evaluations of the denoiser during the last call, counted; of a guided one, of those inside of it.

    Raises:
        ValueError: if ``t_min`` is not positive.
    """

    def __init__(self, t_min: float | None = None) -> None:
        if t_min is not None and not t_min > 0:
            raise ValueError(f"t_min={t_min}: must be positive")
        self.t_min = t_min
        self.nfe = 0

    @abstractmethod
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
        """The algorithm: from the state ``x`` at T to samples, as :meth:`__call__` returns them."""

    @abstractmethod
    def bar(self, sde: SDE, disable: bool) -> tqdm:
        """The progress bar that :meth:`run` moves on."""

    def check(self, sde: SDE) -> None:
        """Raise a ValueError that says why, and what to use, if this sampler does not fit the process."""
        if self.t_min is not None:
            sde.check_t_min(self.t_min)

    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        x_T: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        trajectory: bool | int = False,
        **cond: Any,
    ) -> Tensor:
        """Draw samples.

        Args:
            denoiser: the model.
            shape: of the result, the batch first: ``(B, …)``.
            x_T: the start at time T, of that shape; a draw from the prior if left out.
            generator: draws the start and the noise of each step.
            progress: show a bar with rate and time left.
            trajectory: return every state instead of the last; a number n of at least 2: n of them, evenly spread, the
                start and the samples among them. Only those are held, except by the ODE's fixed-step methods.
            cond: passed to the denoiser, such as ``labels`` ``(B,)``.

        Returns:
            The samples, ``shape``; with ``trajectory`` ``(frames, *shape)``, the first frame the start.

        Raises:
            ValueError: if the sampler does not fit the SDE, ``x_T`` has another shape or is not finite, a condition is
                not one for each example, or a trajectory of fewer than two states is asked for.
        """
        self.check(denoiser.sde)
        if min(shape) < 1:
            raise ValueError(f"shape={tuple(shape)}: every size must be at least 1")
        check_conditions(cond, shape[0])
        if not isinstance(trajectory, bool) and not (trajectory >= 2 and trajectory % 1 == 0):
            raise ValueError(f"trajectory={trajectory}: must be at least 2, the start and the samples, or True for all")
        if x_T is None:
            x_T = denoiser.sde.prior(shape, device=denoiser.device, generator=generator)
        elif tuple(x_T.shape) != tuple(shape):
            raise ValueError(f"x_T has shape {tuple(x_T.shape)}: must be {tuple(shape)}, the shape asked for")
        elif not x_T.isfinite().all():
            raise ValueError("x_T holds NaN or infinite values: all must be finite")

        counted = _Counted(denoiser)
        with torch.no_grad(), self.bar(denoiser.sde, disable=not progress) as bar:
            x = self.run(counted, x_T, bar, generator=generator, trajectory=trajectory, **cond)
        self.nfe = counted.evaluations
        return x

    def times(self, sde: SDE, steps: int, x: Tensor) -> Tensor:
        """The ``steps + 1`` decreasing times from T to this sampler's last, on ``x``'s device, as its dtype."""
        times = sde.timesteps(steps)
        if self.t_min is not None:
            # the process's own spacing, stretched to end elsewhere; in double, or T would round a small t_min away
            times = sde.T + (times.double() - sde.T) * (sde.T - self.t_min) / (sde.T - sde.t_min)
            times[-1] = self.t_min
        return times.to(x)


class StepSampler(Sampler):
    """A sampler that takes a fixed number of steps.

    Args:
        steps: how many, at least 1.
        t_min: where to stop; the SDE's own ``t_min`` if left out.

    Raises:
        ValueError: if ``steps`` is below 1 or ``t_min`` is not positive.
    """

    def __init__(self, steps: int, t_min: float | None = None) -> None:
        super().__init__(t_min)
        if not (steps >= 1 and steps % 1 == 0):
            raise ValueError(f"steps={steps}: at least 1 step is needed")
        self.steps = steps

    @abstractmethod
    def iterate(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, **cond: Any
    ) -> Iterator[Tensor]:
        """Yield the state after each of the :meth:`num_steps` steps; the last is the mean, without noise."""

    def num_steps(self, sde: SDE) -> int:
        """How many states :meth:`iterate` yields."""
        return self.steps

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
        # allocated once: a list of 1,000 frames and its stack would hold everything twice
        kept = kept_states(self.num_steps(denoiser.sde) + 1, trajectory) if trajectory else []
        place = {step: i for i, step in enumerate(kept)}
        frames = x.new_empty(len(kept), *x.shape) if trajectory else None
        if frames is not None:
            frames[0] = x
        for step, state in enumerate(self.iterate(denoiser, x, generator, **cond), start=1):
            x = state
            if frames is not None and step in place:
                frames[place[step]] = x
            bar.update()
        return x if frames is None else frames

    def bar(self, sde: SDE, disable: bool) -> tqdm:
        return progress_bar(total=self.num_steps(sde), desc=type(self).__name__, unit="step", disable=disable)


def intervals(times: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """The steps (t, s, is_last) from each time to the next, t > s, each time repeated to ``(batch,)``."""
    for i in range(len(times) - 1):
        yield times[i].expand(batch), times[i + 1].expand(batch), i == len(times) - 2


def kept_states(count: int, trajectory: bool | int) -> list[int]:
    """Which of ``count`` states a trajectory has: all, or of a number n evenly many: round(i·(count − 1)/(n − 1)).

    There i = 0 … n − 1, so the first and the last state are among them; all if there are no more than n.
    """
    size = count if isinstance(trajectory, bool) else min(trajectory, count)
    return torch.linspace(0, count - 1, size, dtype=torch.float64).round().long().tolist()
