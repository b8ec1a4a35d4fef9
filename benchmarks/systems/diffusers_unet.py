"""diffusers: UNet2DModel with the channels that the Hugging Face diffusion course gives it for MNIST, the DDPM loss.

The course's own network, with two layers a level and attention on 14×14 as well, makes but 353 steps of 64 in ten
minutes on two CPU cores and draws strokes in noise, so it is lighter here. FIDs of 100 samples of it after 911 steps:
linear β's with this solver 270, with DDIM in 50 steps 974; squared-cosine β's (the course's) 303 and 617, with DDPM's
own sampling in 50 steps 300.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from systems.base import Peer


def unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


class Diffusers(Peer):
    name = "diffusers"
    settings = (
        "UNet2DModel (32, 64, 64 channels, as in the course; 1 layer a level, attention on 7×7), DDPM ε loss on 1,000 "
        "linear β's, AdamW 1e-3 by the cosine schedule with 5 % warm-up, batch 64, bf16, EMAModel with "
        "warm-up; DPMSolverMultistep with 20 steps and dynamic thresholding"
    )
    batch_size = 64
    nfe = 20

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.network = unet()
        self.schedule = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.rate = get_cosine_schedule_with_warmup(self.optimizer, steps // 20, steps)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step(self) -> None:
        x = self.batch() / 127.5 - 1
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.network(self.schedule.add_noise(x, noise, t), t).sample
        loss = F.mse_loss(predicted.float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.ema.step(self.network.parameters())

    def save(self, path: Path) -> None:
        averaged = copy.deepcopy(self.network)
        self.ema.copy_to(averaged.parameters())
        torch.save(averaged.state_dict(), path)

    @classmethod
    def model(cls) -> nn.Module:
        return unet()

    @classmethod
    def draw(cls, model: nn.Module, num: int) -> Tensor:
        solver = DPMSolverMultistepScheduler(num_train_timesteps=1000, thresholding=True)
        solver.set_timesteps(cls.nfe)
        x = torch.randn(num, 1, 28, 28)
        for t in solver.timesteps:
            with torch.autocast("cpu", torch.bfloat16):
                noise = model(x, t).sample
            x = solver.step(noise.float(), t, x).prev_sample
        return x
