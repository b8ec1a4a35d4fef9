"""azula: its UNet under its KarrasDenoiser, trained by the denoiser's own loss, sampled by its own samplers."""

import math
from collections.abc import Mapping
from typing import Any

import azula.nn.unet
import torch
from azula.denoise import KarrasDenoiser
from azula.guidance.cfg import CFGDenoiser
from azula.nn.layers import SineEncoding
from azula.noise import VPSchedule
from azula.sample import DDIMSampler, DDPMSampler, HeunSampler, REABSampler, vABSampler, xEABSampler, zEABSampler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lightning import LogNormalTimes
from systems import our_training
from systems.peer import Peer

HIGHEST = 80.0
"""The noise level that samples start from where training has log-normal ones, as in EDM."""


class TimedUNet(nn.Module):
    """azula's networks take a modulation; its tutorials make it from the time by a sine encoding and an MLP.

    With classes an embedding of the class is added to it, whose last row stands for none.
    """

    def __init__(self, num_classes: int | None) -> None:
        super().__init__()
        self.time = nn.Sequential(SineEncoding(128), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, 128)
        self.unet = azula.nn.unet.UNet(
            1, 1, hid_channels=(32, 64, 64), hid_blocks=(2, 2, 2), mod_features=128, norm="group"
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        modulation = self.time(t).expand(len(x), -1)
        if self.classes is not None:
            none = torch.full((len(x),), self.classes.num_embeddings - 1)
            modulation = modulation + self.classes(none if label is None else label)
        return self.unet(x, modulation)


def time_at(level: Tensor) -> Tensor:
    """The time at which the VP schedule has this σ/α, at most 1."""
    schedule = VPSchedule()
    alpha = ((1 + schedule.sigma_min**2) / (1 + level**2)).sqrt()
    return (alpha.clamp(max=1).log() / math.log(schedule.alpha_min)).sqrt().clamp(max=1)


class Azula(Peer):
    name = "azula"
    settings = (
        "its UNet (32, 64, 64 channels, 2 blocks a level) under KarrasDenoiser on the VP schedule, the denoiser's own "
        "loss at uniform times, AdamW 1e-3, batch 64, bf16, torch's EMA 0.995"
    )
    batch_size = 64
    is_scheduled = False

    def set_up(self) -> None:
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.995))

    def times(self, num: int) -> Tensor:
        return torch.rand(num)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network.loss(images / 127.5 - 1, self.times(len(images)))

    def update_average(self) -> None:
        self.ema.update_parameters(self.network)

    def averaged(self) -> nn.Module:
        return self.ema.module

    @classmethod
    def model(cls) -> nn.Module:
        return KarrasDenoiser(TimedUNet(10 if cls.has_classes else None), VPSchedule())

    @classmethod
    def entrance(cls, model: nn.Module) -> nn.Module:
        return model.backbone

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        return {
            "DDIM, 50 steps": (DDIMSampler, {"steps": 50}),
            "DDPM, 50 steps": (DDPMSampler, {"steps": 50}),
            "Heun, 25 steps": (HeunSampler, {"steps": 25}),
            "vAB 3, 50 steps": (vABSampler, {"order": 3, "steps": 50}),
            "zEAB 2, 50 steps": (zEABSampler, {"order": 2, "steps": 50}),
            "xEAB 2, 20 steps": (xEABSampler, {"order": 2, "steps": 20}),
            "xEAB 2, 50 steps": (xEABSampler, {"order": 2, "steps": 50}),
            "xEAB 3, 35 steps": (xEABSampler, {"order": 3, "steps": 35}),
            "REAB 2, 50 steps": (REABSampler, {"order": 2, "steps": 50}),
        }

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        sampler_class, settings = how
        settings, given = dict(settings), {}
        if labels is not None and (weight := settings.pop("guidance", None)):
            model, given = CFGDenoiser(model), {"positive": {"label": labels}, "guidance": weight}
        elif labels is not None:
            given = {"label": labels}
        sampler = sampler_class(model, silent=True, start=cls.first_time(), **settings)
        return sampler(sampler.init((num, 1, 28, 28)), **given)

    @classmethod
    def first_time(cls) -> float:
        return 1.0


class AzulaByOurRecipe(Azula):
    """azula's loss takes the times that it is given; so these are those at which the noise is log-normal, as ours."""

    name = "azula-our-training"
    settings = (
        f"the same network and loss, {our_training.SETTINGS}, log-normal noise levels, from the highest of which, "
        f"{HIGHEST:g}, samples start"
    )
    batch_size = our_training.BATCH_SIZE
    by_our_recipe = True
    is_scheduled = True

    def times(self, num: int) -> Tensor:
        ours = LogNormalTimes()
        return time_at(torch.exp(ours.mean + ours.std * torch.randn(num)))

    @classmethod
    def first_time(cls) -> float:
        return time_at(torch.tensor(HIGHEST)).item()


class _WithClasses(Azula):
    has_classes = True

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        dropped = torch.rand(len(labels)) < our_training.CONDITION_DROPOUT
        labels = labels.masked_fill(dropped, self.network.backbone.classes.num_embeddings - 1)
        return self.network.loss(images / 127.5 - 1, self.times(len(images)), label=labels)

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        guided = {
            f"xEAB 2, 25 steps, CFGDenoiser {weight:g}": (xEABSampler, {"order": 2, "steps": 25, "guidance": weight})
            for weight in (0.5, 1.0, 2.0)
        }
        plain = super().samplers()
        chosen = ("DDIM, 50 steps", "DDPM, 50 steps", "Heun, 25 steps", "xEAB 2, 20 steps", "xEAB 2, 50 steps")
        return {name: plain[name] for name in chosen} | {"xEAB 3, 35 steps": plain["xEAB 3, 35 steps"]} | guided


CLASSES = (
    "an embedding of the class is added to the modulation that it makes of the time, one in ten left out in training "
    "for its CFGDenoiser"
)


class AzulaWithClasses(_WithClasses, Azula):
    name = "azula-classes"
    settings = f"{Azula.settings}; {CLASSES}"


class AzulaWithClassesByOurRecipe(_WithClasses, AzulaByOurRecipe):
    name = "azula-classes-our-training"
    settings = f"{AzulaByOurRecipe.settings}; {CLASSES}"
