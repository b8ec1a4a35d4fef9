r"""What generated images are compared with: the features of real images, or what has been published of them.

The Fréchet distance needs the features' two moments alone,

.. math:: \mu = \frac1M \sum_i f_i, \qquad \Sigma = \frac1{M-1} \sum_i (f_i - \mu)(f_i - \mu)^\top ;

the kernel distance and precision and recall need the features. Statistics are exchanged as ``.npz`` files:

============================ ======================================== =============================================
arrays                       of                                       written by
============================ ======================================== =============================================
``mu`` (F,), ``sigma`` (F,F) the moments                              TTUR, clean-fid, ADM, EDM, `Reference.write`
``pool_3`` (M, F)            the features                             score_sde, with ``logits``, which are not used
============================ ======================================== =============================================

`Reference.write` adds ``feature``, the name of the feature network, for distances in different features do not compare.
Of clean-fid's statistics those of its mode ``legacy_tensorflow`` are of images resized as ``inception_tf1`` does it.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_lightning.metrics.features import FEATURES, extract_features, fingerprint, published_feature
from diffusion_lightning.metrics.kept import forget_parts, part_path, parts_of, store, stored
from diffusion_lightning.progress import progress_bar

ROWS = 4096
"""How many features are summed up at once in double precision."""


@dataclass(frozen=True)
class Moments:
    """Mean ``(F,)`` and unbiased covariance ``(F, F)`` of features, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Those of features ``(M, F)``.

        Raises:
            ValueError: if M is below 2.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features have shape {tuple(features.shape)}: must be (M, F), M at least 2")
        mean = features.mean(0, dtype=torch.float64)
        covariance = mean.new_zeros(len(mean), len(mean))
        for rows in features.split(ROWS):
            centred = rows.double() - mean
            covariance += centred.T @ centred
        return cls(mean, covariance / (len(features) - 1))


@dataclass(frozen=True)
class Reference:
    """Real images as a feature network sees them.

    Attributes:
        name: what results call them.
        moments: of their features.
        features: float32 ``(M, F)`` on the CPU; None where only the moments are known.
        feature: name of the feature network, as `FEATURES` has it, if it is known.
    """

    name: str
    moments: Moments
    features: Tensor | None = None
    feature: str | None = None

    @classmethod
    def of_images(
        cls, name: str, batches: Iterable[Tensor], network: nn.Module, data_id: str, cache: Path | None = None
    ) -> "Reference":
        """That of images, whose features are computed once and kept on disk; all of them are held in memory.

        Args:
            name: of the reference.
            batches: uint8 ``(B, C, H, W)``; read only if the features are not on disk.
            network: uint8 batches → features ``(B, F)``.
            data_id: identifies the images, see ``ImageDataModule.fingerprint``.
            cache: folder for the features; nothing is kept if left out.

        Raises:
            ValueError: for fewer than two images.
        """
        path = _path(network, data_id, cache)
        found = stored(path, "features")
        features = found["features"] if found is not None else extract_features(network, batches)
        if found is None:
            store(path, {"features": features})
        return cls(name, Moments.of(features), features)

    @classmethod
    def of_parts(
        cls,
        name: str,
        count: int,
        read: Callable[[range], Iterable[Tensor]],
        network: nn.Module,
        data_id: str,
        cache: Path | None = None,
        progress: bool = False,
    ) -> "Reference":
        """As :meth:`of_images`, of images that can be read in parts: what was interrupted goes on after the last one.

        Args:
            name: of the reference.
            count: how many images there are.
            read: those of a part, as uint8 batches ``(B, C, H, W)``; called only for parts that are not on disk.
            network: uint8 batches → features ``(B, F)``.
            data_id: identifies the images, see ``ImageDataModule.fingerprint``.
            cache: folder for the features; nothing is kept if left out.
            progress: show a bar, if there is something to compute.

        Raises:
            ValueError: for fewer than two images.
        """
        path = _path(network, data_id, cache)
        found = stored(path, "features")
        if found is not None:
            return cls(name, Moments.of(found["features"]), found["features"])
        parts = parts_of(count)
        with progress_bar(total=count, desc="reference", unit="image", disable=not progress) as bar:
            places = [None if path is None else part_path(path, number, len(parts)) for number in range(len(parts))]
            some = [_of_part(part, place, read, network, bar) for part, place in zip(parts, places, strict=True)]
        features = torch.cat(some)
        if store(path, {"features": features}) and path is not None:
            forget_parts(path)
        return cls(name, Moments.of(features), features)

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """That of an ``.npz`` of one of the forms above. Nothing in the file is executed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"reference={str(path)!r}: there is no such file")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in ("mu", "sigma", "pool_3", "feature") if key in file.files}
                held = ", ".join(file.files)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("what it holds are no arrays")
        except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            # of the types in the middle if it is an array instead of an archive
            raise ValueError(
                f"reference={str(path)!r}: is damaged, or not an .npz of numbers ({' '.join(str(error).split())})"
            ) from error
        if not ("pool_3" in arrays or {"mu", "sigma"} <= arrays.keys()):
            raise ValueError(
                f"reference={str(path)!r}: holds {held or 'nothing'}: must hold mu and sigma (moments), or pool_3 "
                "(features)"
            )
        feature = str(arrays.pop("feature")) if "feature" in arrays else None
        numbers = {key: _numbers(path, key, array) for key, array in arrays.items()}
        if "pool_3" in numbers:
            features = numbers["pool_3"].float()
            if features.ndim != 2 or len(features) < 2:
                raise _misfit(path, "pool_3", features, "(M, F), M at least 2")
            return cls(path.name, Moments.of(features), features, feature)
        mean, covariance = numbers["mu"].double(), numbers["sigma"].double()
        if mean.ndim != 1:
            raise _misfit(path, "mu", mean, "(F,)")
        if covariance.shape != (len(mean), len(mean)):
            raise _misfit(path, "sigma", covariance, f"({len(mean)}, {len(mean)}), as mu has {len(mean)} features")
        scale = covariance.diagonal().abs().max()
        if (covariance - covariance.T).abs().max() > 1e-4 * scale or covariance.diagonal().min() < -1e-4 * scale:
            raise ValueError(
                f"reference={str(path)!r}: sigma is no covariance: must be symmetric, its diagonal positive"
            )
        return cls(path.name, Moments(mean, covariance), feature=feature)

    @property
    def known_feature(self) -> str | None:
        """The name in `FEATURES` of its network, stated or told by the number of features; None if it is not there."""
        name = self.feature or published_feature(len(self.moments.mean))
        return name if name in FEATURES else None

    def write(self, path: Path, feature: str) -> None:
        """Write the moments as ``mu`` and ``sigma``, and the name of their feature network, whole or not at all."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:  # given a name, numpy would add a suffix to it
                mean, covariance = self.moments.mean.numpy(), self.moments.covariance.numpy()
                np.savez(file, mu=mean, sigma=covariance, feature=np.array(feature))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _numbers(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu" or not array.size:
        raise ValueError(f"reference={str(path)!r}: {key} is of {array.dtype}, {array.shape}: must be numbers")
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    if not tensor.isfinite().all():
        raise ValueError(f"reference={str(path)!r}: {key} holds NaN or infinite values: all must be finite")
    return tensor


def _misfit(path: Path, key: str, tensor: Tensor, right: str) -> ValueError:
    return ValueError(f"reference={str(path)!r}: {key} has shape {tuple(tensor.shape)}: must be {right}")


def _path(network: nn.Module, data_id: str, cache: Path | None) -> Path | None:
    """Where the features of a network are kept."""
    return None if cache is None else cache / "features" / f"{data_id}-{fingerprint(network)}.safetensors"


def _of_part(
    part: range, path: Path | None, read: Callable[[range], Iterable[Tensor]], network: nn.Module, bar: tqdm
) -> Tensor:
    """The features of a part, kept on disk."""
    found = stored(path, "features")
    if found is not None and len(found["features"]) == len(part):
        bar.update(len(part))
        return found["features"]

    def counted() -> Iterator[Tensor]:
        for batch in read(part):
            yield batch
            bar.update(len(batch))

    features = extract_features(network, counted())
    store(path, {"features": features})
    return features
