r"""What a model of points has learnt, in one picture after an epoch: its score, its samples, the path of one of them.

The score is shown in the data's own coordinates. With x_t = α(x_0 + νz), ν = σ/α the noise level, the density of
x = x_t/α is the data's, smoothed by a Gaussian of standard deviation ν, and its score is

.. math:: \nabla \ln \tilde p(x) = \alpha\, \nabla \ln p_t(\alpha x),

so that pictures of different processes compare.
"""

import math
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from diffusion_lightning.callbacks.held_out import held_out_points
from diffusion_lightning.callbacks.pictures import check_at_least_one, epoch_path, is_due, leave_picture
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.images import figure_picture
from diffusion_lightning.randomness import Stream, derive_seed, draw_some, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.sde import SDE, expand
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.requested import to_look_at

ARROWS = 24
"""Along each axis."""

INSIDE, MARGIN = 0.99, 0.15
"""The part of the real points, along each axis, whose range is shown; and the margin around it, as a part of it."""


class VectorField(SamplingCallback):
    """Leaves a picture of a model of 2-D points as ``<name>/epoch=….png`` and with the loggers, on its EMA weights.

    Its three panels are limited to the range of the held-out points (99 % of them along each axis) and a margin:

    - the score at a low noise level, by arrows of one length that show the direction and a colour that shows the norm,
      on a logarithmic scale: norms grow as one over the squared noise level away from the data;
    - held-out points in blue and generated points in red;
    - the path of the first of those, x_t, from the noise to the sample, over held-out points. The first quarter of the
      states is left out, and what comes before the path stays in view.

    A network with classes shows the field of class 0 and samples of all classes in turn. The generator is the
    callback's own and starts anew each time. One process does the work.

    Args:
        sampler: the module's own if left out.
        num_samples: generated points, and held-out points shown at most, drawn by the run's seed.
        noise_level: σ/α of the field, positive, in units of the points; limited to those of [t_min, T].
        every_n_epochs: how often; the end of training always counts.
        name: of the folder and of the picture with the loggers; give one to each of several pictures.

    Raises:
        ValueError: if a number is out of its range, or at the start if the sampler does not fit the SDE or the data has
            no held-out points ``(N, 2)``.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_samples: int = 1000,
        noise_level: float = 0.01,
        every_n_epochs: int = 1,
        name: str = "field",
    ) -> None:
        check_at_least_one(num_samples=num_samples, every_n_epochs=every_n_epochs)
        if not 0 < noise_level < math.inf:
            raise ValueError(f"noise_level={noise_level}: must be positive")
        self.sampler = sampler
        self.num_samples = num_samples
        self.noise_level = noise_level
        self.every_n_epochs = every_n_epochs
        self.name = name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ScoreModule)
        self._points(trainer, pl_module)

    def _points(self, trainer: Trainer, pl_module: ScoreModule) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return held_out_points(self, data, pl_module, "SampleGrid or DenoisingProcess")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        path = epoch_path(trainer, self.name)
        with pl_module.ema_weights():  # every process enters, one draws
            if trainer.is_global_zero:
                self._draw(trainer, pl_module, path)

    def _draw(self, trainer: Trainer, pl_module: ScoreModule, path: Path) -> None:
        real = self._points(trainer, pl_module).cpu().float()
        low, high = limits(real)
        grid = grid_points(low, high).to(pl_module.device)
        data = trainer.datamodule  # type: ignore[attr-defined]
        cond = to_look_at(pl_module, torch.zeros(len(grid), dtype=torch.int64, device=pl_module.device), data)
        time = time_near(pl_module.denoiser.sde, self.noise_level)
        was_training = pl_module.training
        try:
            pl_module.eval()
            with torch.no_grad():
                # not at the trainer's precision: dividing by σ² would blow up the rounding of 16 bits
                field = score_field(pl_module.denoiser, grid, time, **cond)
        finally:
            pl_module.train(was_training)
        generator = torch.Generator(pl_module.device).manual_seed(derive_seed(global_seed(), Stream.FIELD))
        states = pl_module.sample(
            self.sampler,
            self.num_samples,
            generator=generator,
            condition=to_look_at(pl_module, torch.arange(self.num_samples), data),
            batch_size=self.num_samples,
            trajectory=True,
        )
        warn_of_broken(count_broken(states[-1]), self.num_samples, "the picture does not show them")
        level = pl_module.denoiser.sde.noise_level(time).item()
        shown = real[draw_some(self.num_samples, len(real), global_seed())]
        picture = draw(grid.cpu(), field.cpu().float(), level, shown, states.cpu().float(), low, high)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            leave_picture(trainer, self.name, picture, path)


def time_near(sde: SDE, noise_level: float) -> Tensor:
    """The time in [t_min, T] at which σ/α is nearest to ``noise_level``; a float64 scalar."""
    return sde.time_at(torch.tensor(noise_level, dtype=torch.float64)).clamp(sde.t_min, sde.T)


def score_field(denoiser: Denoiser, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
    """α·∇ln p_t(α·x) at points ``(N, 2)`` in the data's coordinates and one time: the score of the smoothed data."""
    t = time.to(x).expand(len(x))
    alpha = expand(denoiser.sde.alpha(t), x)
    return alpha * denoiser.score(alpha * x, t, **cond)


def limits(points: Tensor) -> tuple[Tensor, Tensor]:
    """Lower left and upper right corner ``(2,)`` of a square around all but outliers of ``(N, 2)``, and a margin."""
    low, high = points.quantile((1 - INSIDE) / 2, dim=0), points.quantile((1 + INSIDE) / 2, dim=0)
    half = (0.5 + MARGIN) * (high - low).max().clamp(min=1e-6)
    return (low + high) / 2 - half, (low + high) / 2 + half


def grid_points(low: Tensor, high: Tensor) -> Tensor:
    """The centres of ``ARROWS``² equal cells of a rectangle; ``(ARROWS², 2)``."""
    parts = (torch.arange(ARROWS) + 0.5) / ARROWS
    x, y = (start + parts * (end - start) for start, end in zip(low, high, strict=True))
    return torch.cartesian_prod(x, y)


def path_in_view(states: Tensor, low: Tensor, high: Tensor) -> int:
    """From which state on a path ``(F, 2)`` is drawn: at the earliest after a quarter, and then once it stays in view.

    A path that ends out of view is drawn after its quarter, for then no part of it is better than another.
    """
    quarter = len(states) // 4
    outside = ((states < low) | (states > high)).any(-1).nonzero().flatten()
    first = int(outside[-1]) + 1 if len(outside) else 0
    return max(quarter, first) if first < len(states) else quarter


def draw(
    grid: Tensor, field: Tensor, noise_level: float, real: Tensor, states: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The three panels as one picture.

    Args:
        grid: where the field is given, ``(G, 2)``.
        field: score there, ``(G, 2)``.
        noise_level: σ/α of the field.
        real: points, ``(N, 2)``.
        states: of the samples from the noise on, ``(F, B, 2)``.
        low: the lower left corner shown, ``(2,)``.
        high: the upper right corner shown, ``(2,)``.

    Returns:
        uint8 ``(3, H, W)``.
    """
    # here, so that a run without this callback does not wait for it
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.4), dpi=100, layout="constrained")
    score_panel, points_panel, path_panel = figure.subplots(1, 3)
    for panel in (score_panel, points_panel, path_panel):
        panel.set_aspect("equal")
        panel.set_xlim(low[0].item(), high[0].item())
        panel.set_ylim(low[1].item(), high[1].item())
        panel.tick_params(labelsize=8)

    norms = field.norm(dim=-1).nan_to_num(0.0, posinf=torch.finfo(field.dtype).max)
    norms = norms.clamp(min=max(norms.max().item() * 1e-6, 1e-12))
    arrows = (field / norms[:, None]).nan_to_num(0.0)
    score_panel.scatter(*real.T.numpy(), s=4, color="tab:blue", alpha=0.3, linewidths=0)
    quiver = score_panel.quiver(
        *grid.T.numpy(), *arrows.T.numpy(), norms.numpy(), norm=LogNorm(), cmap="viridis_r",
        pivot="mid", angles="xy", scale=1.3 * ARROWS, width=0.004,
    )  # fmt: skip
    figure.colorbar(quiver, ax=score_panel, label="‖∇ ln p‖, per unit of x", shrink=0.8)
    score_panel.set_title(f"score ∇ ln p at noise level σ/α = {noise_level:.3g}")

    samples = states[-1]
    points_panel.scatter(*real.T.numpy(), s=6, color="tab:blue", alpha=0.6, linewidths=0, label=f"{len(real)} real")
    broken = count_broken(samples)
    label = f"{len(samples)} generated" + (f", {broken} not finite" if broken else "")
    points_panel.scatter(*samples.T.numpy(), s=6, color="tab:red", alpha=0.6, linewidths=0, label=label)
    points_panel.set_title("held-out and generated points")

    path = states[:, 0]
    first, last = path_in_view(path, low, high), len(path) - 1
    path_panel.scatter(*real.T.numpy(), s=4, color="tab:blue", alpha=0.3, linewidths=0)
    path_panel.plot(*path[first:].T.numpy(), color="black", linewidth=0.7, alpha=0.8)
    path_panel.plot(*path[first].tolist(), "o", color="tab:orange", markersize=7, label=f"state {first}", zorder=3)
    path_panel.plot(*path[last].tolist(), "*", color="tab:red", markersize=12, label="the sample", zorder=3)
    path_panel.set_title(f"path $x_t$ of one sample, states {first} to {last} of {last}")
    for panel in (points_panel, path_panel):
        panel.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2, frameon=False, fontsize=9, markerscale=1.2
        )

    return figure_picture(figure)
