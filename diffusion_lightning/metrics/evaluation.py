r"""Generated images against real ones, in features: four measures, each by the library that has it, and one of our own.

- Fréchet distance ``fid`` (Heusel et al. 2017, arXiv:1706.08500), between the Gaussians of both sets: torchmetrics. As
  ``fid_infinity`` also that of infinitely many images, extrapolated: `diffusion_lightning.metrics.extrapolation`.
- Kernel distance ``kid`` (Bińkowski et al. 2018, arXiv:1801.01401): the unbiased estimate of the squared maximum mean
  discrepancy under the kernel (xᵀy/F + 1)³, mean over subsets: torchmetrics. Unlike ``fid`` its expectation does not
  depend on the number of images.
- Inception Score ``is`` (Salimans et al. 2016, arXiv:1606.03498), exp E KL(p(y|x) ‖ p(y)), from 1 to the number of
  classes, mean over splits: torchmetrics. It needs no real images, but a classifier's logits.
- Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991): the part of the generated images that lie
  within the real ones' manifold, and of the real ones within the generated ones': torch-fidelity. A set's manifold is
  the union of balls around its features, each reaching to the k-th nearest other one; as in the paper, k is 3, and both
  sets are of one size.
- Agreement, the part of the generated images that a classifier takes for what was asked for, and the part that it can
  read at all, each with its standard error: `diffusion_lightning.metrics.agreement`. It needs logits of the very
  classes that were asked for.

Values depend on the features and on the number of images, so both belong in their names: `metric_name`.
"""

import re
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from diffusion_lightning.metrics.agreement import Agreement, tally
from diffusion_lightning.metrics.extrapolation import MOST_PARTS, infinite_frechet_distance
from diffusion_lightning.metrics.reference import Moments, Reference
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.randomness import draw_some

MetricName = Literal["fid", "kid", "is", "precision_recall", "agreement"]

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS, LEAST_FOR_SPLITS = 10, 1000
NEIGHBOURS = 3


@dataclass
class Scores:
    """What `evaluate` found.

    Attributes:
        values: ``fid``, ``fid_infinity``, ``fid_infinity_error``, ``kid``, ``kid_std`` (over subsets), ``is``,
            ``is_std`` (over splits), ``precision``, ``recall``, ``agreement``, ``agreement_error``, ``legible``,
            ``legible_error``; those that were asked for.
        settings: by metric, what else decides its value.
    """

    values: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, int]] = field(default_factory=dict)


class _Identity(nn.Module):
    """Stands for a feature network where the features are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def metric_name(metric: str, feature: str, num: int) -> str:
    """What a value is called: ``metric_name("fid", "mnist", 1000)`` is ``"fid/mnist@1000"``."""
    return f"{metric}/{feature}@{num}"


def is_spread(name: str, names: Container[str]) -> bool:
    """Whether a value is the spread or the error of one of these, as ``"kid_std/mnist@9"`` is of ``"kid/mnist@9"``."""
    return (of := re.sub(r"^(\w+)_(?:std|error)(?=[/@])", r"\1", name)) != name and of in names


def spread_name(name: str, kind: Literal["std", "error"] = "std") -> str:
    """What the spread, or the error, of a value is called: ``"kid_std/mnist@9"`` of ``"kid/mnist@9"``."""
    return re.sub("(?=[/@])", f"_{kind}", name, count=1)


def spread_of(name: str, values: Mapping[str, float]) -> float | None:
    """The spread, else the error, that stands beside a value; None without any."""
    keys = [spread_name(name, "std"), spread_name(name, "error")]
    return next((values[key] for key in keys if key != name and key in values), None)


def possible_metrics(network: nn.Module, has_features: bool, reads_classes: bool = False) -> tuple[MetricName, ...]:
    """Those of all metrics that a feature network allows and a reference, with features or with moments alone.

    Args:
        network: of the features.
        has_features: whether the reference has them.
        reads_classes: whether the network's logits are of the samples' classes.
    """
    allowed = {
        "fid": True,
        "kid": has_features,
        "is": hasattr(network, "logits"),
        "precision_recall": has_features,
        "agreement": reads_classes,
    }
    return tuple(name for name in get_args(MetricName) if allowed[name])


def evaluate(
    features: Tensor,
    reference: Reference | None,
    metrics: Iterable[MetricName],
    *,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    extrapolate: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Measure generated images by their features.

    Args:
        features: of the generated images, ``(N, F)``, by `extract_features`.
        reference: the real ones', of the same feature network; not needed for ``is`` and ``agreement``.
        metrics: which; see the module's beginning.
        logits: of the generated images, ``(N, K)``; needed for ``is`` and ``agreement`` alone.
        labels: the classes that were asked for, ``(N,)``, for ``agreement``; None if none were.
        extrapolate: beside ``fid`` that of infinitely many images.
        seed: decides the subsets, splits and parts.
        progress: show a bar.

    Raises:
        ValueError: for fewer than two images, or too few to extrapolate, or a metric whose features or logits are
            missing.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features have shape {tuple(features.shape)}: must be (N, F), N at least 2")
    wanted = tuple(dict.fromkeys(metrics))
    scores = Scores()
    with progress_bar(total=len(wanted), desc="metrics", unit="metric", disable=not progress) as bar:
        for metric in wanted:
            match metric:
                case "fid":
                    moments = _moments(reference)
                    scores.values["fid"] = frechet_distance(features, moments)
                    if extrapolate:
                        value, error = infinite_frechet_distance(features, moments, seed)
                        scores.values |= {"fid_infinity": value, "fid_infinity_error": error}
                        scores.settings["fid_infinity"] = {"most_parts": MOST_PARTS}
                case "kid":
                    real = _features(reference, metric)
                    size = min(KID_SUBSET_SIZE, len(features), len(real))
                    mean, std = kernel_distance(features, real, KID_SUBSETS, size, seed)
                    scores.values |= {"kid": mean, "kid_std": std}
                    scores.settings["kid"] = {"subsets": KID_SUBSETS, "subset_size": size}
                case "is":
                    if logits is None:
                        raise ValueError("metrics: is needs a classifier's logits")
                    # a split of a few images holds too few of each class to say anything of their variety
                    splits = IS_SPLITS if len(logits) >= LEAST_FOR_SPLITS else 1
                    mean, std = inception_score(logits, splits, seed)
                    scores.values |= {"is": mean, "is_std": std} if splits > 1 else {"is": mean}
                    scores.settings["is"] = {"splits": splits}
                case "precision_recall":
                    real = _features(reference, metric)
                    size = min(len(features), len(real))
                    k = min(NEIGHBOURS, size - 1)
                    precision, recall = precision_recall(_some(features, size, seed), _some(real, size, seed), k)
                    scores.values |= {"precision": precision, "recall": recall}
                    scores.settings["precision_recall"] = {"neighbours": k, "images": size}
                case "agreement":
                    if logits is None:
                        raise ValueError("metrics: agreement needs a classifier's logits")
                    found = Agreement.of(tally(logits, labels), asked=labels is not None)
                    scores.values |= found.shares | found.errors
                case _:
                    raise ValueError(f"metrics: {metric!r} is none of {', '.join(get_args(MetricName))}")
            bar.update()
    return scores


def frechet_distance(features: Tensor, moments: Moments) -> float:
    """FID of features ``(N, F)`` against a mean and a covariance, in float64."""
    return frechet_distances([features], moments)[0]


def frechet_distances(sets: Sequence[Tensor], moments: Moments) -> list[float]:
    """That of each of several sets of features."""
    from diffusion_lightning.metrics.fid import ReferenceFID  # here, as those below, for torchmetrics takes seconds

    fid = ReferenceFID(_Identity(sets[0].shape[1]))
    fid.set_moments(moments.mean, moments.covariance)
    values = []
    for features in sets:
        fid.update(features.double())
        values.append(fid.compute())
    return values


def kernel_distance(
    features: Tensor, real: Tensor, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """KID between features ``(N, F)`` and ``(M, F)``, in float64.

    Args:
        features: of the generated images.
        real: of the real ones.
        subsets: how many pairs of subsets are drawn.
        subset_size: of each; at most N and M.
        seed: decides the subsets.

    Returns:
        Mean and standard deviation over the subsets.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = _quietly(KernelInceptionDistance, _Identity(features.shape[1]), subsets=subsets, subset_size=subset_size)
    metric.update(real.double(), real=True)  # in float32 the kernel's rounding would be as large as a small distance
    metric.update(features.double(), real=False)
    mean, std = _seeded(metric, seed)
    return mean.item(), std.item()


def inception_score(logits: Tensor, splits: int = IS_SPLITS, seed: int = 0) -> tuple[float, float]:
    """Inception Score of logits ``(N, K)``: mean over the splits, and standard deviation, NaN for a single one."""
    from torchmetrics.image.inception import InceptionScore

    metric = _quietly(InceptionScore, _Identity(logits.shape[1]), splits=splits)
    metric.update(logits.double())
    mean, std = _seeded(metric, seed)
    return mean.item(), std.item()


def precision_recall(features: Tensor, real: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall of features ``(N, F)`` against those of real images ``(M, F)``; k below N and M."""
    from torch_fidelity.metric_prc import (  # here, for it loads all of torch-fidelity
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    # distances of 1,000 images at once: whole matrices would take gigabytes
    found = prc_features_to_metric(
        features, real, prc_neighborhood=k, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def _moments(reference: Reference | None) -> Moments:
    if reference is None:
        raise ValueError("metrics: fid needs a reference")
    return reference.moments


def _features(reference: Reference | None, metric: str) -> Tensor:
    if reference is None or reference.features is None:
        raise ValueError(f"metrics: {metric} needs a reference's features, not its moments alone")
    return reference.features


def _some(features: Tensor, size: int, seed: int) -> Tensor:
    """As many of them, drawn without replacement; all in their order if that is all."""
    if len(features) == size:
        return features
    return features[draw_some(size, len(features), seed)]


def _quietly(metric: Callable[..., Any], network: nn.Module, **settings: Any) -> Any:
    """A torchmetrics metric, without its warning that it keeps all features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return metric(feature=network, **settings)


def _seeded(metric: Any, seed: int) -> tuple[Tensor, Tensor]:
    """What a metric computes with the global generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a single split's standard deviation
        torch.manual_seed(seed)
        return metric.compute()
