r"""Fréchet distance between generated and real images, with the real side computed once and kept on disk.

.. math:: \mathrm{FID} = \lVert \mu_r - \mu_g \rVert^2 + \operatorname{tr}\big(\Sigma_r + \Sigma_g
          - 2(\Sigma_r\Sigma_g)^{1/2}\big)

for the means and covariances of a network's features (Heusel et al. 2017, eq. 6). Its value depends on the features and
on the number of generated images, so both belong in its name.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusion_lightning.home import default_cache
from diffusion_lightning.metrics.features import fingerprint


class ReferenceFID:
    """The FID of generated images against a fixed set of real ones, accumulated over all processes.

    Args:
        features: uint8 images ``(B, C, H, W)`` → features ``(B, F)``; ``num_features`` gives F.
        cache: folder in which the real images' statistics are kept.
    """

    def __init__(self, features: nn.Module, cache: Path | None = None) -> None:
        self.metric = FrechetInceptionDistance(feature=features, reset_real_features=False)
        self.metric.orig_dtype = torch.float32  # torchmetrics sets it on an update, which a process may never see
        self.cache = cache if cache is not None else default_cache()
        self._features_id = fingerprint(features)

    def set_reference(self, images: Iterable[Tensor], data_id: str) -> None:
        """Take the real images' statistics from disk, or compute them and keep them there.

        One process alone must call it: the processes' statistics are added up.

        Args:
            images: uint8 batches ``(B, C, H, W)``; read only if the statistics are not on disk.
            data_id: identifies the images, see ``ImageDataModule.fingerprint``.
        """
        path = self.cache / "fid" / f"{data_id}-{self._features_id}.safetensors"
        names = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")
        if path.is_file():
            stored = load_file(path)
            for name in names:
                setattr(self.metric, name, stored[name].to(self.metric.device))
            return
        for batch in images:
            self.metric.update(batch.to(self.metric.device), real=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            save_file({name: getattr(self.metric, name).cpu().contiguous() for name in names}, part)
            part.replace(path)
        except OSError:
            pass  # a cache that cannot be written costs time, not results

    def set_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Take a mean ``(F,)`` and a covariance ``(F, F)``, float64, for those of the real images' features.

        Raises:
            ValueError: if they are not of as many features as the network's.
        """
        expected = self.metric.real_features_cov_sum.shape
        if (len(mean), *covariance.shape) != (expected[0], *expected):
            raise ValueError(f"{len(mean)} features given: must be {expected[0]}, as many as the network's")
        device = self.metric.device
        # the sums of two images that have these moments; torchmetrics keeps sums
        self.metric.real_features_sum = 2 * mean.double().to(device)
        self.metric.real_features_cov_sum = (covariance + 2 * torch.outer(mean, mean)).double().to(device)
        self.metric.real_features_num_samples = torch.tensor(2, device=device)

    def update(self, images: Tensor) -> None:
        """Add generated images, uint8 ``(B, C, H, W)``."""
        self.metric.update(images.to(self.metric.device), real=False)

    def compute(self) -> float:
        """The FID of all images added by all processes; every process must call it. Forgets them, not the reference."""
        value = self.metric.compute().item()
        self.metric.reset()
        return value
