"""What samples are compared with: real images or what is published of them, in which features, by which metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.data.loader import image_batches
from diffusion_lightning.data.tensor_images import ImageSet
from diffusion_lightning.home import default_cache
from diffusion_lightning.metrics.evaluation import MetricName, possible_metrics
from diffusion_lightning.metrics.features import FEATURES, FeatureChoice, FeatureName, auto_feature
from diffusion_lightning.metrics.reference import Reference


@dataclass
class RealImages:
    """The real images, and what results and caches call them.

    Attributes:
        name: in results.
        images: as a data module holds them.
        data_id: makes a name for exactly these images, by which what is computed of them is kept.
        workers: processes that read them beside this one.
    """

    name: str
    images: ImageSet
    data_id: Callable[[], str]
    workers: int = 0

    @property
    def count(self) -> int:
        return len(self.images)  # type: ignore[arg-type]


@dataclass
class Comparison:
    """What samples are compared with, and how.

    Attributes:
        feature: what results call the feature network.
        network: from uint8 images ``(B, C, H, W)`` to features ``(B, F)``, on the device that draws.
        metrics: which figures are wanted.
        name: what results call the real side, None if there is none.
        real: the real images, None where there are statistics alone, or nothing.
        statistics: what is published of real images, None otherwise.
        extrapolate: whether FID is wanted of infinitely many samples, too.
    """

    feature: str
    network: Any
    metrics: tuple[MetricName, ...]
    name: str | None = None
    real: RealImages | None = None
    statistics: Reference | None = None
    extrapolate: bool = False

    def reference(self, progress: bool = False) -> Reference | None:
        """The real side as the network sees it, computed if it is not on disk; None if there is none."""
        if self.real is None:
            return self.statistics
        real = self.real
        return Reference.of_parts(
            real.name,
            real.count,
            lambda part: image_batches(real.images, workers=real.workers, parts=[part]),
            self.network,
            real.data_id(),
            default_cache(),
            progress,
        )


def chosen_feature(
    feature: FeatureChoice,
    shape: tuple[int, ...],
    of_data: FeatureName | None = None,
    statistics: Reference | None = None,
    path: str | None = None,
) -> FeatureName:
    """The features to compare in.

    Args:
        feature: as it was asked for.
        shape: of a sample.
        of_data: those that suit the real images, if it is known.
        statistics: the real side, if it is no images, and has features already.
        path: of these statistics' file.

    Raises:
        UsageError: if the statistics are of other features than those asked for, or of none that are known.
    """
    if statistics is None:
        return (of_data or auto_feature(shape)) if feature == "auto" else feature
    stated, count = statistics.feature, len(statistics.moments.mean)
    if feature == "auto":
        known = statistics.known_feature
        if known is None:
            found = f"the features {stated!r}" if stated is not None else f"{count} features"
            raise UsageError(
                f"reference={path!r}: is of {found}, which none of the known networks has: {', '.join(FEATURES)}"
            )
        feature = known
    elif stated not in (None, feature):
        raise UsageError(f"feature={feature!r}: {path} is of the features {stated!r}: must be the same")
    if count != (own := FEATURES[feature].num_features):
        raise UsageError(f"reference={path!r}: is of {count} features: must be of {own}, as {feature!r} has")
    return feature


def chosen_metrics(
    metrics: Sequence[MetricName] | None,
    network: nn.Module,
    statistics: Reference | None,
    path: str | None,
    reads_classes: bool,
) -> tuple[MetricName, ...]:
    """The metrics that were asked for, each once; all that are possible if none were.

    Raises:
        UsageError: if one needs the features of real images, and the statistics in the file ``path`` have none; or the
            samples' classes, and the network does not read them.
    """
    possible = possible_metrics(network, statistics is None or statistics.features is not None, reads_classes)
    if metrics is None:
        return possible
    if "agreement" in metrics and not reads_classes:
        known = ", ".join(f"{name} ({' '.join(each.classes)})" for name, each in FEATURES.items() if each.classes)
        raise UsageError(
            f"metrics: agreement needs features of a classifier of the model's own classes, as {known}: leave it out"
        )
    if missing := [name for name in metrics if name not in possible]:
        raise UsageError(
            f"metrics: {missing[0]} needs the reference's features, and {path} holds their moments alone: leave it "
            "out, or give --data or a folder"
        )
    return tuple(dict.fromkeys(metrics))


def statistics_of(path: Path) -> Reference:
    """The statistics in a file.

    Raises:
        UsageError: if it is named as a file of another kind.
        FileNotFoundError, ValueError: if it is not there, or cannot be used.
    """
    if path.suffix != ".npz":
        raise UsageError(f"reference={str(path)!r}: must be a folder of pictures, or an .npz file")
    return Reference.read(path)
