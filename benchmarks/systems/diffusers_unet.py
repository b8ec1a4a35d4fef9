"""diffusers: UNet2DModel with the channels that the Hugging Face diffusion course gives it for MNIST, the DDPM loss.

The course's own network, with two layers a level and attention on 14×14 as well, makes but 353 steps of 64 in ten
minutes on two CPU cores and draws strokes in noise, so it is lighter here. FIDs of 100 samples of it after 911 steps:
linear β's with DPMSolverMultistep in 20 steps 270, with DDIM in 50 steps 974; squared-cosine β's (the course's) 303 and
617, with DDPM's own sampling in 50 steps 300.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from systems import our_training
from systems.peer import Peer


class Diffusers(Peer):
    name = "diffusers"
    settings = (
        "UNet2DModel (32, 64, 64 channels, as in the course; 1 layer a level, attention on 7×7), DDPM ε loss on 1,000 "
        "linear β's, AdamW 1e-3 by the cosine schedule with 5 % warm-up, batch 64, bf16, EMAModel with warm-up"
    )
    batch_size = 64
    is_scheduled = True

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.noising = DDPMScheduler(num_train_timesteps=1000)

    def set_up(self) -> None:
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.rate = get_cosine_schedule_with_warmup(self.optimizer, self.steps // 20, self.steps)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images / 127.5 - 1
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),))
        predicted = self.network(self.noising.add_noise(x, noise, t), t, labels if self.has_classes else None).sample
        return F.mse_loss(predicted.float(), noise)

    def update_average(self) -> None:
        self.ema.step(self.network.parameters())

    def averaged(self) -> nn.Module:
        averaged = copy.deepcopy(self.network)
        self.ema.copy_to(averaged.parameters())
        return averaged

    @classmethod
    def model(cls) -> nn.Module:
        return UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            num_class_embeds=10 if cls.has_classes else None,
        )

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        multistep, bounded = DPMSolverMultistepScheduler, {"thresholding": True}
        return {
            "DPMSolverMultistep, thresholding, 20 steps": (multistep, 20, bounded),
            "DPMSolverMultistep, thresholding, 50 steps": (multistep, 50, bounded),
            "DPMSolverMultistep, Karras sigmas, 20 steps": (multistep, 20, {"use_karras_sigmas": True, **bounded}),
            "DPMSolverMultistep, SDE, 50 steps": (multistep, 50, {"algorithm_type": "sde-dpmsolver++", **bounded}),
            "UniPC, thresholding, 50 steps": (UniPCMultistepScheduler, 50, bounded),
            "DEIS, 35 steps": (DEISMultistepScheduler, 35, {}),
            "EulerDiscrete, 50 steps": (EulerDiscreteScheduler, 50, {}),
            "HeunDiscrete, 25 steps": (HeunDiscreteScheduler, 25, {}),
            "DDIM, thresholding, 50 steps": (DDIMScheduler, 50, bounded),
            "DDPM, 50 steps": (DDPMScheduler, 50, {}),
        }

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        scheduler_class, steps, settings = how
        scheduler = scheduler_class(num_train_timesteps=1000, **settings)
        scheduler.set_timesteps(steps)
        x = torch.randn(num, 1, 28, 28) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise = model(scheduler.scale_model_input(x, t), t, labels).sample
            with torch.autocast("cpu", enabled=False):  # UniPC's sums are products of matrices
                x = scheduler.step(noise.float(), t, x).prev_sample
        return x


class DiffusersByOurRecipe(Diffusers):
    name = "diffusers-our-training"
    settings = f"the same network and loss, {our_training.SETTINGS}; its noise levels are those of its 1,000 β's"
    batch_size = our_training.BATCH_SIZE
    by_our_recipe = True


CLASSES = "with num_class_embeds, told the class and not guided, for none of its pipelines guides this network"


class DiffusersWithClasses(Diffusers):
    name = "diffusers-classes"
    settings = f"{Diffusers.settings}; {CLASSES}"
    has_classes = True


class DiffusersWithClassesByOurRecipe(DiffusersByOurRecipe):
    name = "diffusers-classes-our-training"
    settings = f"{DiffusersByOurRecipe.settings}; {CLASSES}"
    has_classes = True
