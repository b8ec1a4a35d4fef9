"""denoising-diffusion-pytorch: its Unet and GaussianDiffusion as in its README, at a width for digits, and DDIM."""

import copy
from pathlib import Path

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor, nn

from systems.base import Peer


def diffusion() -> GaussianDiffusion:
    network = Unet(dim=16, dim_mults=(1, 2, 4), channels=1)
    return GaussianDiffusion(network, image_size=28, timesteps=1000, sampling_timesteps=DenoisingDiffusionPytorch.nfe)


class DenoisingDiffusionPytorch(Peer):
    name = "denoising-diffusion-pytorch"
    settings = (
        "Unet of dim 16 and dim_mults (1, 2, 4), velocity loss on the sigmoid schedule (its defaults), Adam with betas "
        "(0.9, 0.99) at 1e-3 (the README's 8e-5 is for larger networks and 700,000 steps), batch 32, bf16, EMA 0.995 "
        "every 10 steps; DDIM with 20 steps"
    )
    batch_size = 32
    nfe = 20

    def __init__(self, root: str, steps: int) -> None:
        super().__init__(root, steps)
        self.diffusion = diffusion()
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=1e-3, betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.diffusion(self.batch() / 255)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def save(self, path: Path) -> None:
        torch.save(copy.deepcopy(self.ema.ema_model).state_dict(), path)

    @classmethod
    def model(cls) -> nn.Module:
        return diffusion()

    @classmethod
    def draw(cls, model: nn.Module, num: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.sample(batch_size=num).float() * 2 - 1
