"""A recipe in a bare PyTorch loop: its network, data, EDM loss, clipping, optimizer, EMA, precision; nothing else."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lightning import ScoreModule
from diffusion_lightning.data.base import ImageDataModule

SIGMA_DATA = 0.5


def edm_loss(network: nn.Module, x: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None, bf16: bool) -> Tensor:
    """EDM's loss as one would write it by hand (Karras et al. 2022): of the network's raw output, in one mean.

    Args:
        network: called ``network(x, time_signal, labels)``.
        x: clean images ``(B, C, H, W)``.
        sigma: noise levels ``(B, 1, 1, 1)``.
        noise: standard normal, like ``x``.
        labels: classes ``(B,)`` or None.
        bf16: whether the network runs under autocast to bf16.
    """
    variance = sigma**2 + SIGMA_DATA**2
    noisy = x + sigma * noise
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        output = network(noisy * variance.rsqrt(), sigma.flatten().log() / 4, labels)
    # the weight and the output's scale cancel
    target = (x - noisy * SIGMA_DATA**2 / variance) * variance.sqrt() / (sigma * SIGMA_DATA)
    return ((output.float() - target) ** 2).mean()


class BareLoop:
    """The loop.

    Args:
        module: a recipe for EDM, whose settings are taken over; itself is left alone.
        data: its images.
        network: trained in place, on the device.
        device: that trains.
        bf16: whether in bf16, else in float32.
        compile: whether the network is compiled.
    """

    def __init__(
        self,
        module: ScoreModule,
        data: ImageDataModule,
        network: nn.Module,
        device: torch.device,
        bf16: bool,
        compile: bool = False,
    ) -> None:
        self.images, self.batch_size, self.flip = data.train_images, data.batch_size, data.flip
        self.network, self.device, self.bf16 = network.to(device).train(), device, bf16
        self.takes_labels = bool(getattr(network, "num_classes", None))
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.clip_norm = module.clip_norm
        self.optimizer = module.optimizer(self.parameters)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(module.ema.decay))
        if compile:
            self.network.compile()

    def step(self) -> None:
        """One step on a batch drawn with replacement."""
        x, labels = self._batch()
        sigma = (1.2 * torch.randn(len(x), 1, 1, 1, device=self.device) - 1.2).exp()
        loss = edm_loss(self.network, x, sigma, torch.randn_like(x), labels, self.bf16)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.network)

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        images, labels = self.images[torch.randint(len(self.images), (self.batch_size,))]
        x = images.to(self.device).float() / 127.5 - 1
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=self.device) < 0.5, x, x.flip(-1))
        return x, labels.to(self.device) if self.takes_labels else None
