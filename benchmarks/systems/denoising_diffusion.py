"""denoising-diffusion-pytorch: its Unet and GaussianDiffusion as in its README, at a width for digits, and DDIM.

Its other diffusion, ElucidatedDiffusion, has log-normal noise levels; so ours is tried on that one. With classes it has
a network and a GaussianDiffusion of their own, in ``classifier_free_guidance``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from denoising_diffusion_pytorch import ElucidatedDiffusion, GaussianDiffusion, Unet, classifier_free_guidance
from ema_pytorch import EMA
from torch import Tensor, nn

from systems import our_training
from systems.peer import Peer

WIDTHS: dict[str, Any] = {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1}


class DenoisingDiffusionPytorch(Peer):
    name = "denoising-diffusion-pytorch"
    settings = (
        "Unet of dim 16 and dim_mults (1, 2, 4), velocity loss on the sigmoid schedule (its defaults), Adam with betas "
        "(0.9, 0.99) at 1e-3 (the README's 8e-5 is for larger networks and 700,000 steps), batch 32, bf16, EMA 0.995 "
        "every 10 steps"
    )
    batch_size = 32
    is_scheduled = False

    def set_up(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, betas=(0.9, 0.99))
        self.ema = EMA(self.network, beta=0.995, update_every=10)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(images / 255)

    def update_average(self) -> None:
        self.ema.update()

    def averaged(self) -> nn.Module:
        return self.ema.ema_model

    @classmethod
    def model(cls) -> nn.Module:
        return GaussianDiffusion(Unet(**WIDTHS), image_size=28, timesteps=1000)

    @classmethod
    def entrance(cls, model: nn.Module) -> nn.Module:
        return model.model.init_conv

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        """DDIM is all that it has below its thousand steps: its steps, and η."""
        return {
            f"DDIM, {steps} steps, η {eta:g}": (steps, eta)
            for steps, eta in ((20, 0.0), (35, 0.0), (50, 0.0), (50, 0.5), (50, 1.0))
        }

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        _by_ddim(model, *how)
        return model.sample(batch_size=num) * 2 - 1


class DenoisingDiffusionPytorchByOurRecipe(DenoisingDiffusionPytorch):
    name = "denoising-diffusion-pytorch-our-training"
    settings = (
        "the same Unet with the learnt time embedding that its ElucidatedDiffusion asks for, under that: log-normal "
        f"noise levels and EDM's loss; {our_training.SETTINGS}"
    )
    batch_size = our_training.BATCH_SIZE
    by_our_recipe = True
    is_scheduled = True

    @classmethod
    def model(cls) -> nn.Module:
        return ElucidatedDiffusion(Unet(**WIDTHS, learned_sinusoidal_cond=True), image_size=28, channels=1)

    @classmethod
    def entrance(cls, model: nn.Module) -> nn.Module:
        return model.net.init_conv

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        """EDM's Heun with its churn and without, and DPM-Solver++(2M)."""
        heun = {
            f"Heun, {steps} steps, churn {churn:g}": (steps, churn)
            for steps, churn in ((10, 0), (18, 0), (25, 0), (25, 80))
        }
        return heun | {f"DPM-Solver++(2M), {steps} steps": (steps, None) for steps in (10, 20, 35, 50)}

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        steps, churn = how
        if churn is None:
            return model.sample_using_dpmpp(batch_size=num, num_sample_steps=steps) * 2 - 1
        model.S_churn = churn
        return model.sample(batch_size=num, num_sample_steps=steps) * 2 - 1


class DenoisingDiffusionPytorchWithClasses(DenoisingDiffusionPytorch):
    name = "denoising-diffusion-pytorch-classes"
    settings = (
        "classifier_free_guidance.Unet of the same widths, its GaussianDiffusion (noise loss on the cosine schedule) "
        "and its dropout of half the classes, its defaults; training as without classes"
    )
    has_classes = True

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(images / 255, classes=labels)

    @classmethod
    def model(cls) -> nn.Module:
        network = classifier_free_guidance.Unet(**WIDTHS, num_classes=10)
        return classifier_free_guidance.GaussianDiffusion(network, image_size=28, timesteps=1000)

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        """Guided, with two evaluations a step: by a scale of exactly 1 its ``sample`` fails."""
        settings = ((10, 0.0, 1.5), (25, 0.0, 1.1), (25, 0.0, 1.5), (25, 0.0, 3.0), (25, 1.0, 1.5), (25, 1.0, 6.0))
        return {
            f"DDIM, {steps} steps, η {eta:g}, guided by {scale:g}": (steps, eta, scale)
            for steps, eta, scale in settings
        }

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        steps, eta, scale = how
        _by_ddim(model, steps, eta)
        return model.sample(classes=labels, cond_scale=scale) * 2 - 1


class DenoisingDiffusionPytorchWithClassesByOurRecipe(DenoisingDiffusionPytorchWithClasses):
    name = "denoising-diffusion-pytorch-classes-our-training"
    settings = (
        f"classifier_free_guidance as above; {our_training.SETTINGS}; noise levels as they are, for it has no "
        "ElucidatedDiffusion with classes"
    )
    batch_size = our_training.BATCH_SIZE
    by_our_recipe = True
    is_scheduled = True


def _by_ddim(model: Any, steps: int, eta: float) -> None:
    model.sampling_timesteps, model.is_ddim_sampling, model.ddim_sampling_eta = steps, True, eta
