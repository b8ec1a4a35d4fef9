r"""Fréchet distance between generated and real images, with the real side computed once and kept on disk.

.. math:: \mathrm{FID} = \lVert \mu_r - \mu_g \rVert^2 + \operatorname{tr}\big(\Sigma_r + \Sigma_g
          - 2(\Sigma_r\Sigma_g)^{1/2}\big)

for the means and covariances of a network's features (Heusel et al. 2017, eq. 6). Its value depends on the features and
on the number of generated images, so both belong in its name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from diffusion_lightning.floats import has_float64
from diffusion_lightning.home import default_cache
from diffusion_lightning.metrics.features import fingerprint
from diffusion_lightning.metrics.kept import forget_parts, part_path, parts_of, store, stored
from diffusion_lightning.metrics.reference import Moments
from diffusion_lightning.progress import progress_bar

SUMS = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")
"""What is kept of features ``(N, F)``, as torchmetrics calls it: Σf ``(F,)``, Σffᵀ ``(F, F)``, in float64, and N."""


class ReferenceFID:
    """The FID of generated images against a fixed set of real ones, accumulated over all processes.

    Features are computed where :meth:`to` puts the network; their sums are float64, on the CPU if that device has none.

    Args:
        features: uint8 images ``(B, C, H, W)`` → features ``(B, F)``; ``num_features`` gives F.
        cache: folder in which the real images' statistics are kept.
    """

    def __init__(self, features: nn.Module, cache: Path | None = None) -> None:
        self.features = features
        self.metric = FrechetInceptionDistance(feature=features, reset_real_features=False)
        self.metric.inception = nn.Identity()  # it is given features, not images
        self.metric.orig_dtype = torch.float32  # torchmetrics sets it on an update, which a process may never see
        self.cache = cache if cache is not None else default_cache()
        self.features_id = fingerprint(features)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Compute on this device from now on."""
        self.features.to(device)
        self.metric.to(device if has_float64(device) else "cpu")
        self._device = device

    def set_reference(self, images: Iterable[Tensor], data_id: str) -> None:
        """Take the real images' statistics from disk, or compute them and keep them there.

        One process alone must call it: the processes' statistics are added up.

        Args:
            images: uint8 batches ``(B, C, H, W)``; read only if the statistics are not on disk.
            data_id: identifies the images, see ``ImageDataModule.fingerprint``.
        """
        path = self._path(data_id)
        sums = self._stored(path)
        if sums is None:
            sums = self._sums(images)
            store(path, dict(zip(SUMS, sums, strict=True)))
        self._take(sums)

    def share_reference(
        self,
        count: int,
        read: Callable[[Sequence[range]], Iterable[Tensor]],
        data_id: str,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """As :meth:`set_reference`, but every process must call it, and computes its share.

        The images are divided into parts that do not depend on the number of processes, nor does the result, to the
        last digit. Each part is kept on disk until all are done: what was interrupted goes on from there. No process
        waits for another longer than for about one part. The first process alone has the sum in the end.

        Args:
            count: how many images there are.
            read: those of parts, one after the other, as uint8 batches ``(B, C, H, W)`` of one part each; called for
                all parts at once that are not on disk.
            data_id: the same in every process.
            world_size: number of processes.
            rank: of this one.
        """
        path = self._path(data_id)
        total = self._stored(path) if rank == 0 else None
        if self._told(total is not None, world_size):
            forget_parts(path)
            if total is not None:
                self._take(total)
            return
        total = self._nothing()
        parts = parts_of(count)
        places = [part_path(path, number, len(parts)) for number in range(len(parts))]
        own_parts = range(rank, len(parts), world_size)
        # settled now, for another run may write some of them; and read by one loader, which forks its workers once:
        # each fork beside the threads of a process group has its risk
        missing = [number for number in own_parts if self._stored(places[number], len(parts[number])) is None]
        images = iter(read([parts[number] for number in missing]))
        with progress_bar(total=count, desc="FID reference", unit="image", disable=rank != 0) as bar:
            for first in range(0, len(parts), world_size):
                some = range(first, min(first + world_size, len(parts)))
                own = None
                if (number := first + rank) in some:
                    to_come = images if number in missing else None
                    own = self._part(parts[number], places[number], read, to_come, bar)
                # one after the other, so that no process ever holds more than two parts' sums
                for source, number in enumerate(some):
                    sums = self._sent(own, source, rank)
                    if source == rank:
                        own = None
                    else:
                        bar.update(len(parts[number]))
                    if rank == 0:
                        assert sums is not None
                        for whole, summand in zip(total, sums, strict=True):
                            whole += summand
                    del sums
        if rank == 0:
            self._take(total)
        if self._told(rank == 0 and store(path, dict(zip(SUMS, total, strict=True))), world_size):
            forget_parts(path)  # each process, for the folder may be one of its machine

    def _part(
        self,
        part: range,
        path: Path,
        read: Callable[[Sequence[range]], Iterable[Tensor]],
        images: Iterator[Tensor] | None,
        bar: tqdm,
    ) -> list[Tensor]:
        """A part's sums: of the next images, if there are any to come for it, else from disk; kept there."""
        sums = self._stored(path, len(part)) if images is None else None
        if sums is not None:
            bar.update(len(part))
            return sums
        if images is None:
            images = iter(read([part]))  # it has gone meanwhile
        sums = self._sums(_next(images, len(part)), bar)
        store(path, dict(zip(SUMS, sums, strict=True)))
        return sums

    def _sums(self, images: Iterable[Tensor], bar: tqdm | None = None) -> list[Tensor]:
        total, products, count = self._nothing()
        for batch in images:
            features = self.features_of(batch).to(self.metric.device).double()
            total += features.sum(dim=0)
            products += features.t().mm(features)
            count += len(features)
            if bar is not None:
                bar.update(len(features))
        return [total, products, count]

    @torch.no_grad()
    def features_of(self, images: Tensor) -> Tensor:
        """The features ``(B, F)`` of uint8 images ``(B, C, H, W)``, computed where :meth:`to` put the network."""
        return self.features(images.to(self._device)).reshape(len(images), -1)

    def _nothing(self) -> list[Tensor]:
        return [torch.zeros_like(getattr(self.metric, name)) for name in SUMS]

    def _sent(self, own: list[Tensor] | None, source: int, rank: int) -> list[Tensor] | None:
        """The sums that a process has, in every process; those of the first, which needs them, in this one alone."""
        if source == 0:
            return own if rank == 0 else None
        sums = own if rank == source else self._nothing()
        assert sums is not None
        for tensor in sums:
            distributed.broadcast(tensor, source)
        return sums

    def _told(self, answer: bool, world_size: int) -> bool:
        """What the first process answers."""
        if world_size == 1:
            return answer
        told = torch.tensor(int(answer), device=self.metric.device)
        distributed.broadcast(told, 0)
        return bool(told)

    def _path(self, data_id: str) -> Path:
        return self.cache / "fid" / f"{data_id}-{self.features_id}.safetensors"

    def _stored(self, path: Path, count: int | None = None) -> list[Tensor] | None:
        """The sums in a file, if they are of as many features, and of so many images, or at least one."""
        found = stored(path, *SUMS)
        if found is None:
            return None
        like = self._nothing()
        sums = [found[name].to(self.metric.device) for name in SUMS]
        fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(sums, like, strict=True))
        return sums if fits and (sums[2] > 0 if count is None else sums[2] == count) else None

    def _take(self, sums: Iterable[Tensor]) -> None:
        for name, tensor in zip(SUMS, sums, strict=True):
            setattr(self.metric, name, tensor)

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

    @property
    def moments(self) -> Moments:
        """Those of the real images' features, in the process that has them."""
        total, products, count = (getattr(self.metric, name).cpu() for name in SUMS)
        mean = total / count
        return Moments(mean, (products - count * torch.outer(mean, mean)) / (count - 1))

    def update(self, images: Tensor) -> Tensor:
        """Add generated images, uint8 ``(B, C, H, W)``; returns their features ``(B, F)``, where the network is."""
        features = self.features_of(images)
        self.metric.update(features.to(self.metric.device), real=False)
        return features

    def compute(self) -> float:
        """The FID of all images added by all processes; every process must call it. Forgets them, not the reference."""
        value = self.metric.compute().item()
        self.metric.reset()
        return value


def _next(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The next batches, of so many images together."""
    while count > 0:
        batch = next(batches)
        count -= len(batch)
        yield batch
