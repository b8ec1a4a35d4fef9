"""azula: its UNet under its KarrasDenoiser, trained by the denoiser's own loss, sampled by its Adams–Bashforth."""

import copy
from pathlib import Path

import azula.nn.unet
import torch
from azula.denoise import KarrasDenoiser
from azula.nn.layers import SineEncoding
from azula.noise import VPSchedule
from azula.sample import xEABSampler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from systems.base import Peer


class TimedUNet(nn.Module):
    """azula's networks take a modulation; its tutorials make it from the time by a sine encoding and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(SineEncoding(128), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128))
        self.unet = azula.nn.unet.UNet(
            1, 1, hid_channels=(32, 64, 64), hid_blocks=(2, 2, 2), mod_features=128, norm="group"
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, self.time(t).expand(len(x), -1))


def denoiser() -> KarrasDenoiser:
    return KarrasDenoiser(TimedUNet(), VPSchedule())


class Azula(Peer):
    name = "azula"
    settings = (
        "its UNet (32, 64, 64 channels, 2 blocks a level) under KarrasDenoiser on the VP schedule, the denoiser's own "
        "loss at uniform times, AdamW 1e-3, batch 64, bf16, torch's EMA 0.995; xEAB of order 2 with 20 steps"
    )
    batch_size = 64
    nfe = 20

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.denoiser = denoiser()
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-3)
        self.ema = AveragedModel(self.denoiser, multi_avg_fn=get_ema_multi_avg_fn(0.995))

    def step(self) -> None:
        x = self.batch() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.denoiser.loss(x, torch.rand(len(x)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.denoiser)

    def save(self, path: Path) -> None:
        torch.save(copy.deepcopy(self.ema.module).state_dict(), path)

    @classmethod
    def model(cls) -> nn.Module:
        return denoiser()

    @classmethod
    def draw(cls, model: nn.Module, num: int) -> Tensor:
        sampler = xEABSampler(model, order=2, steps=cls.nfe, silent=True)
        with torch.autocast("cpu", torch.bfloat16):
            return sampler(sampler.init((num, 1, 28, 28))).float()
