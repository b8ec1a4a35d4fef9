"""ScoreModule: the Lightning face of denoiser, objective and EMA."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from diffusion_lightning.checkpoint import KEY, load_checkpoint
from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.ema import EMA
from diffusion_lightning.objective import DenoisingScoreMatching
from diffusion_lightning.parameterization import Parameterization
from diffusion_lightning.progress import progress_bar
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.recipe import build, describe
from diffusion_lightning.samplers import Heun, Sampler
from diffusion_lightning.sde import SDE


class ScoreModule(LightningModule):
    r"""Trains a denoiser by denoising score matching, and keeps the averaged weights that samples are drawn from.

    A training step minimizes the batch mean of :math:`\lambda(t)\lVert D(x_t, t) - x_0\rVert^2` (see
    :mod:`diffusion_lightning.objective`), clips the gradient's norm, steps the optimizer and then the EMA. Its random
    draws depend on (seed, rank, epoch, batch) alone. Validation, sampling and prediction use the EMA weights.

    Logged: ``train/loss_step``, ``train/loss_epoch`` and, with noise that is the same in every epoch, ``val/loss``.

    Args:
        network: called ``network(x, time_signal, labels)``; it must keep its constructor's arguments as attributes.
        sde: the forward process.
        parameterization: what the network's output means.
        objective: the loss; ``simple`` weighting at uniform times if left out.
        ema_decay: d of :class:`EMA`, in [0, 1].
        optimizer: makes the optimizer from the trainable parameters; AdamW at 2e-4 if left out.
        lr_scheduler: makes a scheduler from the optimizer; none if left out. A ``ReduceLROnPlateau`` is stepped once an
            epoch on its ``monitor``, any other one after every optimizer step.
        sampler: draws samples wherever no other is named; :class:`Heun` with 18 steps if left out.
        clip_norm: the largest norm of the gradient; ``None`` for no clipping. The trainer's ``gradient_clip_val``,
            if given, takes its place.
        compile: compile the network with ``torch.compile``; checkpoints do not depend on it.
        shape: of one example, ``(C, H, W)`` or ``(D,)``; taken from the data at the first use if left out.

    Raises:
        ValueError: if an argument is out of its range, or ``network`` could not be rebuilt from a checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        objective: DenoisingScoreMatching | None = None,
        ema_decay: float = 0.9999,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampler: Sampler | None = None,
        clip_norm: float | None = 1.0,
        compile: bool = False,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: must be positive, or null for no clipping")
        self.denoiser = Denoiser(network, sde, parameterization)
        self.objective = objective if objective is not None else DenoisingScoreMatching()
        self.sampler = sampler if sampler is not None else Heun()
        self.sampler.check(sde)
        self.ema = EMA((p for p in network.parameters() if p.requires_grad), ema_decay)
        self.optimizer = optimizer if optimizer is not None else partial(torch.optim.AdamW, lr=2e-4)
        self.lr_scheduler = lr_scheduler
        self.clip_norm = clip_norm
        self.shape = tuple(shape) if shape is not None else None
        if compile:
            network.compile()
        self.save_hyperparameters(
            {
                "network": describe(network),
                "sde": describe(sde),
                "parameterization": describe(parameterization),
                "objective": describe(self.objective),
                "sampler": describe(self.sampler),
                "ema_decay": ema_decay,
                "optimizer": describe(self.optimizer),
                "lr_scheduler": describe(lr_scheduler),
                "clip_norm": clip_norm,
                "compile": compile,
                "shape": describe(self.shape),
            }
        )

    @property
    def network(self) -> nn.Module:
        """The network inside the denoiser."""
        assert self.denoiser.network is not None
        return self.denoiser.network

    # ---- training

    def setup(self, stage: str) -> None:
        """Learn the examples' shape from the data, once; sampling from a checkpoint needs it."""
        data = getattr(self.trainer, "datamodule", None)
        if self.shape is None and data is not None and hasattr(data, "shape"):
            self._set_shape(data.shape)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step: what it draws does not depend on what came before."""
        torch.manual_seed(derive_seed(global_seed(), self.global_rank, self.current_epoch, batch_idx, Stream.STEP))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The batch's mean loss; a batch is ``(x (B, …) in [-1, 1], labels (B,))``."""
        x, labels = batch
        if self.shape is None:
            self._set_shape(x.shape[1:])
        loss = self.objective(self.denoiser, x, **self.condition(labels)).mean()
        self.log("train/loss_step", loss, prog_bar=True)
        # the epoch's mean is over the ranks; to synchronize every step as well would slow each one
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the trainer's setting if it has one, else to ``clip_norm``."""
        self.clip_gradients(
            optimizer,
            gradient_clip_val=self.clip_norm if gradient_clip_val is None else gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm or "norm",
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then the EMA's."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update()

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and the scheduler if there is one."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "train/loss_epoch")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- validation and prediction, on the EMA weights

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss at times and noise that are the same in every epoch, so that epochs compare."""
        x, labels = batch
        generator = torch.Generator(x.device).manual_seed(
            derive_seed(global_seed(), self.global_rank, batch_idx, Stream.VALIDATION)
        )
        with self.ema_weights():
            loss = self.objective(self.denoiser, x, generator=generator, **self.condition(labels)).mean()
        name = "test/loss" if self.trainer.testing else "val/loss"
        self.log(name, loss, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(x))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """As :meth:`validation_step`, logged as ``test/loss``."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One sample for each index of ``batch`` ``(B,)``, by the module's sampler."""
        seed = derive_seed(global_seed(), int(batch[0]), Stream.PREDICTION)
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.sample(num=len(batch), labels=self.default_labels(batch), generator=generator)

    # ---- sampling

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the network has the EMA weights; afterwards, whatever happened, its own. May be nested."""
        with self.ema.average_parameters():
            yield

    def sample(
        self,
        sampler: Sampler | None = None,
        num: int = 64,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        batch_size: int = 256,
        progress: bool = False,
        trajectory: bool = False,
    ) -> Tensor:
        """Draw samples with the EMA weights, at the trainer's precision if there is a trainer.

        Args:
            sampler: the module's own if left out. Afterwards its ``nfe`` is that of the last batch.
            num: how many, at least 1.
            labels: classes ``(num,)``; for a conditional network 0, 1, 2, … in turn if left out.
            generator: draws the starts and the steps' noise.
            batch_size: how many are drawn at once.
            progress: show bars, of the images and of each batch's steps.
            trajectory: return every state instead of the last.

        Returns:
            ``(num, *shape)`` float32 on the module's device, about [-1, 1]; with ``trajectory=True``
            ``(frames, num, *shape)``, the first frame the starts, the last the samples.

        Raises:
            ValueError: if ``num`` is below 1, the shape is not known yet, or the sampler does not fit the SDE.
        """
        if num < 1:
            raise ValueError(f"num={num}: at least 1 sample must be asked for")
        if self.shape is None:
            raise ValueError("shape: not known before training; give ScoreModule(shape=(C, H, W)), or (D,) for points")
        sampler = sampler if sampler is not None else self.sampler
        if labels is None:
            labels = self.default_labels(torch.arange(num, device=self.device))
        batches, was_training = [], self.training
        bar = progress_bar(total=num, desc="images", unit="image", disable=not (progress and num > batch_size))
        try:
            self.eval()
            with self.ema_weights(), self._precision(), bar:
                for first in range(0, num, batch_size):
                    size = min(batch_size, num - first)
                    cond: dict[str, Any] = {} if labels is None else {"labels": labels[first : first + size]}
                    batch = sampler(
                        self.denoiser,
                        (size, *self.shape),
                        generator=generator,
                        progress=progress,
                        trajectory=trajectory,
                        **cond,
                    )
                    batches.append(batch)
                    bar.update(size)
        finally:
            self.train(was_training)
        # a single batch as it is: a copy of a long trajectory may be a gigabyte
        return batches[0] if len(batches) == 1 else torch.cat(batches, dim=1 if trajectory else 0)

    def condition(self, labels: Tensor) -> dict[str, Any]:
        """What the network is conditioned on: the labels if it has classes, else nothing."""
        return {"labels": labels} if getattr(self.network, "num_classes", None) else {}

    def default_labels(self, indices: Tensor) -> Tensor | None:
        """The classes that samples of these indices get unless told otherwise: in turn; none without classes."""
        classes = getattr(self.network, "num_classes", None)
        return indices % classes if classes else None

    def _precision(self) -> Any:
        trainer = self._trainer
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the EMA, the package's version and the loggers' run ids."""
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint[KEY] = {
            "version": version("diffusion-lightning"),
            "run_ids": {type(logger).__name__: logger.version for logger in self.loggers},
        }

    def check_network(self, checkpoint: dict[str, Any]) -> None:
        """Raise a ValueError that names the difference, if a checkpoint is of another network than this module's."""
        saved, own = checkpoint["hyper_parameters"]["network"], self.hparams["network"]
        if saved != own:
            raise ValueError(f"the checkpoint is of another network: {_difference(saved, own)}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the EMA back, after checking that the checkpoint is of this network.

        Raises:
            ValueError: if the checkpoint's network is another one.
        """
        self.check_network(checkpoint)
        if self.shape is None and checkpoint["hyper_parameters"]["shape"] is not None:
            self._set_shape(checkpoint["hyper_parameters"]["shape"])
        self.ema.load_state_dict(checkpoint["ema"])

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = "cpu", **kwargs: Any
    ) -> "ScoreModule":
        """Rebuild a module from its checkpoint alone.

        Args:
            checkpoint_path: the ``.ckpt`` file.
            map_location: where its tensors go, as in ``torch.load``.
            kwargs: constructor arguments to change, as objects or recipes, such as ``compile=True``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds code, or is not of a ScoreModule.
        """
        checkpoint = load_checkpoint(checkpoint_path, map_location)
        # compiling is worth it for training; whoever loads a checkpoint asks for it anew
        changed = {"compile": False} | {name: describe(value) for name, value in kwargs.items()}
        module = build(cls, {**checkpoint["hyper_parameters"], **changed})
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module

    def _set_shape(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.hparams["shape"] = list(shape)


def _difference(saved: dict[str, Any], own: dict[str, Any]) -> str:
    """In which words two recipes differ."""
    if saved["class_path"] != own["class_path"]:
        return f"{saved['class_path']} there, {own['class_path']} here"
    names = saved["init_args"].keys() | own["init_args"].keys()
    pairs = [(name, saved["init_args"].get(name), own["init_args"].get(name)) for name in sorted(names)]
    return "; ".join(f"{name}={there} there, {here} here" for name, there, here in pairs if there != here)
