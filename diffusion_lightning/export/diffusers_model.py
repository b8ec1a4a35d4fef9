r"""A denoiser of any of our processes as a model of the diffusers library, for its variance-preserving schedulers.

A scheduler of diffusers (DDPM, DDIM, DPM-Solver, …) holds :math:`\bar\alpha_i` for its steps i = 0 … N − 1 and states
:math:`y = \sqrt{\bar\alpha_i}\,x_0 + \sqrt{1 - \bar\alpha_i}\,z`. Scaled, such a state is one of any other process at
the time t of the same noise level,

.. math:: x = \frac{\alpha(t)}{\sqrt{\bar\alpha_i}}\,y, \qquad
          \frac{\sigma(t)}{\alpha(t)} = \sqrt{\frac{1 - \bar\alpha_i}{\bar\alpha_i}},

so that the noise, which the scheduler asks for, is :math:`(y - \sqrt{\bar\alpha_i}\,D(x, t))/\sqrt{1 - \bar\alpha_i}`.

Our own networks cannot be written as diffusers' ``UNet2DModel``, whatever its settings and theirs: every residual and
attention block of :class:`~diffusion_lightning.UNet` divides its sum by √2, where ``UNet2DModel`` lets only the middle
do so. The factor cannot be moved into the weights, for it would change the scale at which the group norms of later
blocks add their ε, and that of one half of what the decoder's norms take together. Moreover ``UNet2DModel`` has one
number of groups for all norms and embeds the time in as many numbers as the first level has channels, and has neither
patches nor a null class. So a model here is the denoiser itself, wrapped; only a
:class:`~diffusion_lightning.DiffusersUNet` is written as the ``UNet2DModel`` that it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser, NetworkDenoiser
from diffusion_lightning.export.record import recipe_of
from diffusion_lightning.networks import DiffusersUNet
from diffusion_lightning.parameterization import NoisePrediction, VelocityPrediction
from diffusion_lightning.sde import DiscreteVPSDE, expand
from diffusion_lightning.training.recipe import build

try:
    from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, DDPMScheduler, ModelMixin, UNet2DModel
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    raise ImportError(
        "format=diffusers: needs the package diffusers: pip install 'diffusion-lightning[diffusers]'"
    ) from error

_BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Of :class:`DiscreteVPSDE`, as diffusers calls them."""

_PREDICTION_TYPES = {NoisePrediction: "epsilon", VelocityPrediction: "v_prediction"}


class DiffusersDenoiser(ModelMixin, ConfigMixin):
    """A denoiser as diffusers' pipelines call their ``unet``: ``(sample, timestep, class_labels) -> noise``.

    Use it with any scheduler of diffusers for ``prediction_type="epsilon"`` whose betas are those given here, at whole
    timesteps or, where a scheduler has them (``EulerDiscreteScheduler``), at those in between, ln(σ/α) being linear
    there as it is in the schedulers. ``save_pretrained`` and ``from_pretrained`` are diffusers' own. Since diffusers
    builds no class of a module that has not been imported, import this one before a pipeline is loaded::

        from diffusers import DDIMPipeline
        import diffusion_lightning.export.diffusers_model
        pipeline = DDIMPipeline.from_pretrained(folder)

    Noise levels outside of the process's [t_min, T] are met at its ends. Above, the state's noise is scaled to that of
    T, x = α(T)·(y/√ᾱ)·(level(T)/level), so that the network sees what it was trained on and the first steps leave the
    noise as it is: the scheduler then starts as our own samplers do, from σ(T)·z. Below, the state is taken as it is.

    Args:
        denoiser: the denoiser, or the recipes of its parts as :func:`diffusion_lightning.export.record.recipe_of`
            gives them, which are built as :func:`~diffusion_lightning.load_denoiser` says.
        in_channels: channels of the images.
        sample_size: height and width of the images, or one number for both.
        num_train_timesteps, beta_start, beta_end, beta_schedule: of the scheduler, as diffusers names them.

    Raises:
        ValueError: for recipes that cannot be used.
    """

    def __init__(
        self,
        denoiser: Denoiser | dict[str, Any],
        in_channels: int,
        sample_size: int | Sequence[int],
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
    ) -> None:
        super().__init__()
        # not by the name of the argument, which on a ModelMixin is its config's
        self.model: Denoiser = denoiser if isinstance(denoiser, Denoiser) else build(NetworkDenoiser, denoiser)
        schedule = {
            "num_train_timesteps": num_train_timesteps,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "beta_schedule": beta_schedule,
        }
        # of an exact or guided denoiser there is no recipe, and it cannot be saved
        recipe = recipe_of(self.model) if type(self.model) is NetworkDenoiser else None
        self.register_to_config(denoiser=recipe, in_channels=in_channels, sample_size=sample_size, **schedule)
        alphas = DDPMScheduler(**schedule).alphas_cumprod.double()
        self._log_levels = 0.5 * torch.log((1 - alphas) / alphas)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The noise in ``sample``.

        Args:
            sample: the scheduler's states y ``(B, C, H, W)``.
            timestep: its step, one for all or ``(B,)``, in 0 … N − 1.
            class_labels: classes ``(B,)``. For a network with classes, if left out, 0, 1, 2, … in turn, as for
                :meth:`diffusion_lightning.ScoreModule.sample`.
            return_dict: return a ``UNet2DOutput`` and not a tuple.

        Returns:
            E[z | y] as the ``sample`` of a ``UNet2DOutput``, or as the only entry of a tuple; shape of ``sample``.
        """
        sde, batch = self.model.sde, len(sample)
        # few numbers, on the CPU in double: near the ends of a process time and noise level are ill-conditioned
        level = self._level(torch.as_tensor(timestep).detach().to("cpu", torch.float64).reshape(-1).expand(batch))
        ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
        lowest, highest = sde.noise_level(ends)
        t = sde.time_at(level.clamp(lowest, highest)).clamp(*ends)
        root = torch.sqrt(1 + level**2)  # 1/√ᾱ
        scale = sde.alpha(t) * root * (highest / level).clamp(max=1)
        classes = self.model.num_classes
        if class_labels is None and classes:
            class_labels = torch.arange(batch, device=sample.device) % classes
        condition = {} if class_labels is None else {"labels": class_labels}
        denoised = self.model.denoise(_each(scale, sample) * sample, t.to(sample), **condition)
        noise = _each(root / level, sample) * sample - _each(1 / level, sample) * denoised
        return UNet2DOutput(sample=noise) if return_dict else (noise,)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own, for a network's denoiser.

        Raises:
            ValueError: for a denoiser of another type, which cannot be rebuilt from a file.
        """
        if self.config["denoiser"] is None:
            raise ValueError(f"a {type(self.model).__name__} cannot be saved: only a Denoiser of a network can")
        super().save_pretrained(*args, **kwargs)

    def _level(self, step: Tensor) -> Tensor:
        """σ/α of the scheduler at steps in 0 … N − 1, ``(B,)``."""
        below = step.floor().long().clamp(0, len(self._log_levels) - 2)
        low, high = self._log_levels[below], self._log_levels[below + 1]
        return torch.exp(low + (step - below) * (high - low))


def make_pipeline(denoiser: Denoiser, shape: Sequence[int]) -> DDIMPipeline:
    """A pipeline of diffusers that draws samples of a denoiser, by DDIM unless it is given another scheduler.

    Its ``unet`` is a :class:`DiffusersDenoiser`, with the betas of the denoiser's process if that is a
    :class:`DiscreteVPSDE`, else with those of DDPM, whose noise levels run from 0.01 to 157. It is a ``UNet2DModel``
    where the network is one and the process is that of a scheduler.

    Args:
        denoiser: of images.
        shape: theirs, ``(C, H, W)``.

    Raises:
        ValueError: if ``shape`` is not one of images.
    """
    if len(shape) != 3:
        raise ValueError(f"shape={tuple(shape)}: diffusers' pipelines draw images, and these are points")
    sde, size = denoiser.sde, shape[1] if shape[1] == shape[2] else list(shape[1:])
    schedule = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if type(sde) is DiscreteVPSDE:
        schedule = {
            "num_train_timesteps": sde.num_steps,
            "beta_start": sde.beta_start,
            "beta_end": sde.beta_end,
            "beta_schedule": _BETA_SCHEDULES[sde.schedule],
        }
    unet: UNet2DModel | DiffusersDenoiser
    prediction_type = "epsilon"
    if is_library_model(denoiser):
        assert isinstance(denoiser, NetworkDenoiser)
        assert isinstance(denoiser.network, DiffusersUNet)
        prediction_type = _PREDICTION_TYPES[type(denoiser.parameterization)]  # type: ignore[index]
        unet = UNet2DModel(**{**denoiser.network.config, "sample_size": size})
        unet.load_state_dict(denoiser.network.unet.state_dict())
    else:
        unet = DiffusersDenoiser(denoiser, shape[0], size, **schedule)  # type: ignore[arg-type]
    scheduler = DDIMScheduler(
        **schedule,
        prediction_type=prediction_type,
        clip_sample=False,  # no part of the algorithm
        timestep_spacing="trailing",  # from the last step on, where there is nothing but noise
    )
    return DDIMPipeline(unet.eval(), scheduler)


def save_pipeline(denoiser: Denoiser, folder: Path, *, shape: Sequence[int]) -> None:
    """Write :func:`make_pipeline`'s pipeline, for ``DDIMPipeline.from_pretrained(folder)``."""
    make_pipeline(denoiser, shape).save_pretrained(str(folder))


def is_library_model(denoiser: Denoiser) -> bool:
    """Whether the network is a ``UNet2DModel`` for the steps and the prediction of a scheduler of diffusers."""
    return (
        isinstance(denoiser, NetworkDenoiser)
        and isinstance(denoiser.network, DiffusersUNet)
        and type(denoiser.sde) is DiscreteVPSDE
        and denoiser.network.num_train_timesteps == denoiser.sde.num_steps
        and type(denoiser.parameterization) in _PREDICTION_TYPES
    )


def _each(values: Tensor, sample: Tensor) -> Tensor:
    """One value per example, as ``sample`` is."""
    return expand(values.to(sample), sample)
