"""FID after an epoch, named by its features and its number of samples, so that only equals are compared."""

import math
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from diffusion_lightning.callbacks.pictures import check_at_least_one, check_images, share
from diffusion_lightning.callbacks.sampling import Measurement
from diffusion_lightning.images import to_uint8
from diffusion_lightning.metrics.agreement import Agreement, tally, tally_held_out
from diffusion_lightning.metrics.evaluation import metric_name
from diffusion_lightning.metrics.extrapolation import infinite_frechet_distance, least_samples
from diffusion_lightning.metrics.features import FEATURES, FeatureChoice, auto_feature, build_features, reads_classes
from diffusion_lightning.metrics.fid import ReferenceFID
from diffusion_lightning.metrics.kernel_distance import REAL, KernelDistance, some_real_features
from diffusion_lightning.progress import progress_bar, watched
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.broken_samples import count_broken, warn_of_broken
from diffusion_lightning.training.guided import GuidanceChoice, name_of
from diffusion_lightning.training.module import ScoreModule
from diffusion_lightning.training.requested import to_compare
from diffusion_lightning.training.resumption import metrics_of


class FIDCallback(Measurement):
    """Logs the Fréchet distance between samples, drawn with the EMA weights, and the training images.

    Logged as ``fid/<features>@<num_samples>``, such as ``fid/digits@1000``; NaN, with a warning, if a sample is not
    finite. Samples are quantized to 8 bits first, as images are. A conditional network is asked for each class as often
    as the training images have it (:func:`~diffusion_lightning.data.shares.in_shares`), in turn if that is not known;
    the first measurement says which; one that is told more gets the conditions of as many training images, drawn by the
    seed. The drawing is split over the processes, torchmetrics adds up their statistics.
    Those of the training images are computed once, by all processes together, and kept on disk, as each part of more
    than 10,000 images is: a run that was interrupted goes on after the last one. It also runs after ``lightning
    validate`` and ``lightning test``.

    Beside it stands the kernel distance of the same samples, ``kid/<features>@<num_samples>``, whose expectation does
    not depend on their number, by all pairs with up to 5,000 training images
    (:mod:`~diffusion_lightning.metrics.kernel_distance`); of a data module that can read some of its images alone, as
    all of this package can.

    Where the features are those of a classifier of the data's own classes, as ``"digits"`` is, it says what it reads in
    the same samples (:mod:`~diffusion_lightning.metrics.agreement`): ``agreement/<features>@<num_samples>``, the share
    that shows the class that was asked for, with its standard error ``agreement_error/…``, and ``legible/…``, the share
    that it is sure of; of a network without classes the latter alone. The same of held-out images is
    ``agreement/<features>_real@<images>``.

    Args:
        sampler: the module's own if left out.
        num_samples: generated images, at least 2; FIDs of different numbers do not compare.
        feature: ``"digits"`` (of digits, shipped), ``"mnist"`` (as it was called and computed before),
            ``"inception"`` (downloads its weights), ``"inception_tf1"`` (the same, its pictures resized as for
            published statistics), ``"auto"`` (what the data name as ``fid_feature``, else what suits the shape of their
            examples; in a run that was begun in ``"mnist"``, that), or a module from uint8 ``(B, C, H, W)`` to
            ``(B, F)``.
        every_n_epochs: how often; the end of training always counts.
        batch_size: how many samples are drawn at once in each process.
        feature_weights: local file of the inception network's weights, for machines without a network.
        cache: folder for the training images' statistics; ``~/.cache/diffusion_lightning`` if left out.
        guidance: steers the samples: the module's own, null for none, or a class and its arguments. One that is not
            the module's is part of the names of all that is measured of them:
            ``fid/digits,ClassifierFreeGuidance(weight=2)@1000``, or ``fid/digits,unguided@1000``.
        extrapolate: also log ``fid_infinity/<features>@<num_samples>``, the FID of infinitely many samples as that of
            these says it, with a standard error (:mod:`~diffusion_lightning.metrics.extrapolation`).

    Raises:
        ValueError: if a number is too small, or at the start if the sampler does not fit the SDE, ``feature`` has an
            unknown name, the data has no reference images, or there are too few samples to extrapolate.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        num_samples: int = 1000,
        feature: FeatureChoice | nn.Module = "auto",
        every_n_epochs: int = 1,
        batch_size: int = 250,
        feature_weights: str | None = None,
        cache: str | None = None,
        guidance: GuidanceChoice = "own",
        extrapolate: bool = False,
    ) -> None:
        check_at_least_one(every_n_epochs=every_n_epochs, batch_size=batch_size)
        if not (num_samples >= 2 and num_samples % 1 == 0):
            raise ValueError(f"num_samples={num_samples}: must be at least 2, for there is no covariance of one image")
        self.sampler = sampler
        self.num_samples = num_samples
        self.feature = feature
        self.every_n_epochs = every_n_epochs
        self.batch_size = batch_size
        self.feature_weights = feature_weights
        self.cache = Path(cache) if cache is not None else None
        self.guidance = guidance
        self.extrapolate = extrapolate
        self.name: str | None = None
        """What the result is logged as; known after ``setup``."""
        self._label = ""
        self._drawn_label = ""  # with what steered the samples
        self._feature: FeatureChoice | nn.Module = feature
        self._fid: ReferenceFID | None = None
        self._begun_in: FeatureChoice | None = None
        self._has_reference = False
        self._kid: KernelDistance | None = None  # of the first process, which computes it
        self._has_kid = False
        self._held_out: Agreement | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            super().setup(trainer, pl_module, stage)

    def go_on_from(self, checkpoint: Mapping[str, Any], module: ScoreModule, data: Any) -> None:
        """In a run that goes on, ``"auto"`` is what it was when the run was begun: values in others do not compare."""
        if self.feature != "auto" or self._begun_in is not None:
            return
        own = self._chosen(data)
        before = FEATURES[own].before if own in FEATURES else None
        features = {re.split("[/,@]", name)[1] for name in metrics_of(checkpoint) if name.startswith("fid/")}
        if before in features and own not in features:
            self._begun_in, self._fid = before, None
            self.check(module, data)
            rank_zero_info(
                f"FIDCallback: feature=auto stays {before}, in which this run has been measured so far, and its best "
                f"checkpoint is chosen; {own}, what it is in a new run, does not compare"
            )

    def _chosen(self, data: Any) -> FeatureChoice | nn.Module:
        if self.feature != "auto":
            return self.feature
        return self._begun_in or getattr(data, "fid_feature", None) or auto_feature(data.shape)

    def check(self, module: ScoreModule, data: Any) -> None:
        """As its parent's; makes the feature network, once.

        Raises:
            OSError: if its weights are to be downloaded and cannot be.
            ValueError: as the class says.
        """
        super().check(module, data)
        if self._fid is not None:
            return
        if not hasattr(data, "fid_reference"):
            raise ValueError(f"FIDCallback: {type(data).__name__} has no fid_reference(), the images to compare with")
        feature = self._chosen(data)
        if not isinstance(feature, nn.Module):
            check_images(self, module, data, for_points="use SlicedWasserstein for points")
        try:
            label, features = build_features(feature, self.feature_weights)
        except OSError as error:
            raise OSError(
                f"FIDCallback: {error}; or leave FID out: --config configs/overlays/without_fid.yaml"
            ) from error
        num_features: Any = features.num_features
        if self.extrapolate and self.num_samples < (least := least_samples(num_features)):
            raise ValueError(
                f"FIDCallback: num_samples={self.num_samples}: must be at least {least} to extrapolate FID in "
                f"{num_features} features; or leave extrapolate out"
            )
        self._label, self._feature = label, feature
        guidance, own = name_of(module.own_or(self.guidance)), name_of(module.guidance)
        self._drawn_label = label if guidance == own else f"{label},{guidance or 'unguided'}"
        self.name = metric_name("fid", self._drawn_label, self.num_samples)
        self._fid = ReferenceFID(features, self.cache)

    def evaluate(self, trainer: Trainer, pl_module: ScoreModule) -> None:
        assert self._fid is not None
        assert self.name is not None
        self._fid.to(pl_module.device)
        is_read = reads_classes(self._feature, pl_module.class_names, pl_module.num_classes)
        if not self._has_reference:
            self._set_reference(trainer)
            if pl_module.has_classes:
                rank_zero_info(f"{self.name}: classes of the samples {pl_module.drawn_classes}")
            if is_read:
                self._read_held_out(trainer, pl_module)
        seed = derive_seed(global_seed(), trainer.global_rank, Stream.FID)
        generator = torch.Generator(pl_module.device).manual_seed(seed)
        count = share(self.num_samples, trainer.world_size, trainer.global_rank)
        data = trainer.datamodule  # type: ignore[attr-defined]
        asked = to_compare(pl_module, self.num_samples, data, global_seed())
        own = torch.arange(self.num_samples)[trainer.global_rank :: trainer.world_size]
        bar = progress_bar(total=count, desc=self.name, unit="image", disable=not trainer.is_global_zero)
        broken = 0
        read = torch.zeros(3, dtype=torch.int64, device=pl_module.device)
        seen: list[Tensor] = []
        # the processes may draw unequally many batches, but enter this equally often
        with pl_module.ema_weights(), bar:
            for first in range(0, count, self.batch_size):
                size = min(self.batch_size, count - first)
                condition = asked(own[first : first + size])
                samples = pl_module.sample(
                    self.sampler,
                    size,
                    generator=generator,
                    condition=condition,
                    guidance=self.guidance,
                    batch_size=size,
                )
                broken += count_broken(samples)
                features = self._fid.update(to_uint8(samples))
                if self._has_kid or self.extrapolate:
                    seen.append(features)
                if is_read:
                    read += tally(self._fid.features.logits(features), condition.get("labels"))  # type: ignore[operator]
                bar.update(size)
        # every process must enter this: it adds up their statistics, and a process missing would be waited for
        value = self._fid.compute()
        counts = torch.cat((read.new_tensor([broken]), read))
        counts = trainer.strategy.reduce(counts, reduce_op="sum").cpu()
        if counts[0]:
            warn_of_broken(int(counts[0]), self.num_samples, f"{self.name} is nan")
            value = math.nan
        pl_module.log(self.name, value, on_step=False, on_epoch=True, prog_bar=True, sync_dist=False)
        if self._has_kid or self.extrapolate:
            self._log_of_features(pl_module, seen, is_known=not counts[0])
        if is_read:
            self._log_agreement(pl_module, counts[1:], is_known=not counts[0])

    def _log_of_features(self, pl_module: ScoreModule, seen: list[Tensor], is_known: bool) -> None:
        """Log what all samples' features say beside their moments, NaN where it is not known.

        Every process enters it; the first computes it for all of them.
        """
        assert self._fid is not None
        own = (
            torch.cat(seen)
            if seen
            else torch.empty(0, len(self._fid.metric.real_features_sum), device=pl_module.device)
        )
        features = self.rows_of_all(pl_module, own, self.num_samples)
        values: dict[str, float] = {}
        if pl_module.trainer.is_global_zero:
            if self._kid is not None:
                values["kid"] = self._kid(features) if is_known else math.nan
            if self.extrapolate:
                moments = self._fid.moments
                found = (
                    infinite_frechet_distance(features.cpu(), moments, global_seed()) if is_known else [math.nan] * 2
                )
                values |= dict(zip(("fid_infinity", "fid_infinity_error"), found, strict=True))
        values = pl_module.trainer.strategy.broadcast(values)
        named = {metric_name(name, self._drawn_label, self.num_samples): value for name, value in values.items()}
        pl_module.log_dict(named, on_step=False, on_epoch=True, sync_dist=False)

    def _read_held_out(self, trainer: Trainer, pl_module: ScoreModule) -> None:
        """What is read in held-out images, by all processes together; nothing if there are none."""
        assert self._fid is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        images = getattr(data, "held_out_images", None)
        if images is not None and len(images):
            place, groups = (trainer.global_rank, trainer.world_size), getattr(data, "groups", None)
            own = tally_held_out(self._fid.features, images, global_seed(), pl_module.device, *place, groups)
            read = trainer.strategy.reduce(own, reduce_op="sum")
            self._held_out = Agreement.of(read, asked=pl_module.has_classes)

    def _log_agreement(self, pl_module: ScoreModule, counts: Tensor, is_known: bool) -> None:
        """Log what was read in all samples, NaN where it is not known, and the same of held-out images."""
        found = Agreement.of(counts, asked=pl_module.has_classes)
        values = {
            metric_name(name, self._drawn_label, self.num_samples): value if is_known else math.nan
            for name, value in (found.shares | found.errors).items()
        }
        if (real := self._held_out) is not None:
            values |= {metric_name(name, f"{self._label}_real", real.num): p for name, p in real.shares.items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=False)

    def _set_reference(self, trainer: Trainer) -> None:
        assert self._fid is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        images = getattr(data, "train_images", None)
        if images is not None and "parts" in signature(data.fid_reference).parameters:
            # found out once: of a million files it takes minutes
            data_id = trainer.strategy.broadcast(data.fingerprint() if trainer.is_global_zero else "")
            self._fid.share_reference(len(images), data.fid_reference, data_id, trainer.world_size, trainer.global_rank)
            self._has_kid = len(images) >= 2
            if self._has_kid and trainer.is_global_zero:  # fewer than a part, for which the others wait at most
                path = self._fid.cache / "features" / f"{data_id}-{self._fid.features_id}-{REAL}.safetensors"
                real = some_real_features(len(images), data.fid_reference, self._fid.features_of, path)
                self._kid = KernelDistance(real.to(self._fid.metric.device))
        elif trainer.is_global_zero:
            total = None if images is None else len(images)
            reference = watched(data.fid_reference(), total=total, desc="FID reference", unit="image")
            self._fid.set_reference(reference, data.fingerprint())
        self._has_reference = True
