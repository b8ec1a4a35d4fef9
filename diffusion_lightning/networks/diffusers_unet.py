"""The U-Net of the diffusers library, so that models published for it can be sampled from and trained further here."""

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffusion_lightning.networks.blocks import check_inputs, require

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_ROUNDING = 1e-3
"""More than float32 loses in N·t for N up to thousands, and less than makes a difference to the embedding."""


class DiffusersUNet(nn.Module):
    """diffusers' ``UNet2DModel``, told the time t as the number of a step: ``UNet2DModel(x, N·t − 1)``.

    diffusers counts the steps of its schedules 0 … N − 1; the times of the discrete processes here are (i + 1)/N. Such
    a time becomes the whole number i, without float32's rounding. Times in between, which ODE solvers and continuous
    processes have, become numbers in between, at which the sinusoidal embedding is defined as well; those below 1/N
    become step 0.

    google/ddpm-cifar10-32 and its like predict the noise of ``DiscreteVPSDE()`` (N = 1000, β from 1e-4 to 0.02): the
    parameterization is ``NoisePrediction``, or ``VelocityPrediction`` where the model's scheduler says
    ``prediction_type: v_prediction``. Both give the network t as its time signal.

    The weights are read from ``pretrained`` when the network is made for a new run. A checkpoint holds the architecture
    and the weights themselves: the attributes are ``pretrained=None`` and the whole ``config``, and so neither the
    folder nor the hub is needed to load it.

    From: Ho et al. 2020 (arXiv:2006.11239); https://huggingface.co/docs/diffusers/api/models/unet2d.

    Args:
        pretrained: a folder that diffusers' ``save_pretrained`` has written, of a ``UNet2DModel`` or of a pipeline with
            one as its ``unet``, or the name of such a model on the Hugging Face hub. None for random weights.
        config: arguments of ``UNet2DModel`` by name. With ``pretrained`` they take the place of the model's own: its
            ``dropout``, for instance.
        num_train_timesteps: N.

    Raises:
        ImportError: if the package diffusers is not installed.
        ValueError: if there is no such model, its weights are not of this architecture, or it is not one of those that
            this class is for: its input and output are alike, it is told of the time by the sinusoidal embedding, and
            of the class, if at all, by its number.
    """

    argument_names: ClassVar = {
        "in_channels": ("config.in_channels", "config.out_channels"),
        "num_classes": ("config.num_class_embeds",),
    }
    """By which arguments the attributes are set that other networks have arguments of the same name for."""

    def __init__(
        self, pretrained: str | None = None, config: dict[str, Any] | None = None, num_train_timesteps: int = 1000
    ) -> None:
        super().__init__()
        require("num_train_timesteps", num_train_timesteps, num_train_timesteps >= 1, "at least 1")
        if pretrained is None and config is None:
            raise ValueError("pretrained, config: give the model to read, or the arguments of a UNet2DModel to make")
        _check_names(config or {})
        self.unet = _made(config or {}) if pretrained is None else _read(pretrained, config or {})
        self.unet.train()  # diffusers gives what it reads without dropout
        self.pretrained: str | None = None
        self.config = _different_from_defaults(self.unet)
        self.num_train_timesteps = num_train_timesteps

        full = self.unet.config
        embedding, alike = full.time_embedding_type, full.out_channels == full.in_channels
        require("config.time_embedding_type", embedding, embedding == "positional", "'positional', of a step's number")
        require("config.out_channels", full.out_channels, alike, f"{full.in_channels}, as in_channels: no variance")
        require("config.class_embed_type", full.class_embed_type, full.class_embed_type is None, "null: class numbers")
        self.in_channels: int = full.in_channels
        self.num_classes: int | None = full.num_class_embeds
        self._multiple = 2 ** (len(full.block_out_channels) - 1)

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: images ``(B, in_channels, H, W)``, their sides multiples of 2^(levels − 1).
            time_signal: times ``(B,)`` in (0, 1].
            labels: classes ``(B,)``, int64, for a network with classes (``num_class_embeds``); None for one without.

        Returns:
            A tensor of the shape and dtype of ``x``.

        Raises:
            ValueError: if labels are missing or of no use, or a shape is wrong.
        """
        check_inputs(x, time_signal, self.in_channels)
        if any(side % self._multiple for side in x.shape[2:]):
            raise ValueError(f"height and width must be multiples of {self._multiple}, got x of shape {tuple(x.shape)}")
        if (labels is None) != (self.num_classes is None):
            needed = "None: this network has no classes" if labels is not None else "given: this network has classes"
            raise ValueError(f"labels must be {needed} (num_class_embeds={self.num_classes})")
        return self.unet(x, self.step_number(time_signal), class_labels=labels).sample.to(x.dtype)

    def step_number(self, time_signal: Tensor) -> Tensor:
        """N·t − 1, at least 0; whole for a time of the grid; shape of ``time_signal``, in float32 or float64."""
        t = time_signal.to(torch.promote_types(time_signal.dtype, torch.float32))
        number = (self.num_train_timesteps * t - 1).clamp(min=0)
        whole = number.round()
        return torch.where((number - whole).abs() < _ROUNDING, whole, number)


def _library() -> "type[UNet2DModel]":
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError(
            "DiffusersUNet needs the package diffusers: pip install 'diffusion-lightning[diffusers]'"
        ) from error
    return UNet2DModel


def _check_names(config: dict[str, Any]) -> None:
    known = inspect.signature(_library()).parameters
    for name in config:
        require("config", name, name in known, f"arguments of diffusers' UNet2DModel ({', '.join(known)})")


def _made(config: dict[str, Any]) -> "UNet2DModel":
    try:
        return _library()(**config)
    except (TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:  # for what it does not check itself
        raise ValueError(f"config: no UNet2DModel can be made of it: {_one_line(error)}") from error


def _read(pretrained: str, changes: dict[str, Any]) -> "UNet2DModel":
    """The model of a folder or of the hub, whose weights are all there and all used."""
    model, folder = _library(), Path(pretrained)
    if not folder.is_dir() and not _HUB_ID.fullmatch(pretrained):
        raise ValueError(f"pretrained={pretrained!r}: there is no such folder")
    subfolder, config = _config_of(pretrained)
    if config.get("_class_name") != model.__name__:
        raise ValueError(f"pretrained={pretrained!r}: is a {config.get('_class_name')}: must be a {model.__name__}")
    try:
        unet, report = model.from_pretrained(
            pretrained,
            subfolder=subfolder,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # which would want another package, and leave out what is missing
            **changes,
        )
    except RuntimeError as error:
        raise ValueError(
            f"pretrained={pretrained!r}: its weights are not of this architecture: {_one_line(error)}"
        ) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"pretrained={pretrained!r}: cannot be read: {_one_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := report[problem]:
            raise ValueError(
                f"pretrained={pretrained!r}: its weights are not of this architecture: "
                f"{problem.replace('_', ' ')} {', '.join(map(str, list(names)[:3]))}"
            )
    return unet


def _config_of(pretrained: str) -> tuple[str | None, dict[str, Any]]:
    """The subfolder that the model lies in, None for none, and its config."""
    reasons = []
    for subfolder in (None, "unet"):
        try:
            return subfolder, dict(_library().load_config(pretrained, subfolder=subfolder))
        except (OSError, ValueError) as error:
            reasons.append(_one_line(error))
    raise ValueError(
        f"pretrained={pretrained!r}: must be a folder with a UNet2DModel's config.json, there or in unet/, or one "
        f"of the hub that can be downloaded: {reasons[0]}"
    )


def _different_from_defaults(unet: "UNet2DModel") -> dict[str, Any]:
    """The arguments that make this architecture; those that a later diffusers adds do not change it."""
    defaults = inspect.signature(type(unet)).parameters
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in unet.config.items()
        if name in defaults and _as_list(value) != _as_list(defaults[name].default)
    }


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
