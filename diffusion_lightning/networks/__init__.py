"""Networks: functions ``network(x, time_signal, labels=None)`` of the shape of ``x``.

Those that have an attribute ``conditions`` are told of these, by the names of :mod:`diffusion_lightning.conditions`.

They know torch and nothing else: what the output means (score, noise, …) and what the time signal is (t, log σ, …)
is a parameterization's business. Every constructor argument is a plain value kept as an attribute of the same name,
so that ``{name: getattr(network, name)}`` over the signature rebuilds the network.
"""

from diffusion_lightning.networks.diffusers_unet import DiffusersUNet
from diffusion_lightning.networks.double_conv_unet import DoubleConvUNet
from diffusion_lightning.networks.mlp import MLP
from diffusion_lightning.networks.score_net import ScoreNet
from diffusion_lightning.networks.unet import UNet

__all__ = ["MLP", "DiffusersUNet", "DoubleConvUNet", "ScoreNet", "UNet"]
