"""ScoreModule: the Lightning face of denoiser, objective and EMA."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from diffusion_lightning.conditions import Condition, has_nulls, taken_by
from diffusion_lightning.data.augmentation import GeometricAugmentation
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.objective import DenoisingScoreMatching
from diffusion_lightning.parameterization import Parameterization
from diffusion_lightning.randomness import Stream, derive_seed, global_seed
from diffusion_lightning.samplers import Heun, Sampler
from diffusion_lightning.sde import SDE
from diffusion_lightning.training.callback_states import put_off_the_end
from diffusion_lightning.training.compilation import Compile, check_choice, compile_in_place
from diffusion_lightning.training.data_check import DataCheck
from diffusion_lightning.training.draws import draw_all, draw_rows, drop_conditions
from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.epoch_loss import EpochLoss, own_part
from diffusion_lightning.training.fused import fuse
from diffusion_lightning.training.guided import Steering, check_own
from diffusion_lightning.training.recipe import describe, plain
from diffusion_lightning.training.requested import to_look_at
from diffusion_lightning.training.restoring import Restores
from diffusion_lightning.training.resume import Change, changes
from diffusion_lightning.training.resumption import Resumption
from diffusion_lightning.training.schedule import plateau_monitor
from diffusion_lightning.training.sharding import blocks, gathered, is_sharded, shard
from diffusion_lightning.training.skipped_steps import SkippedSteps
from diffusion_lightning.training.steps import TakesSteps
from diffusion_lightning.training.trained import DrawsSamples
from diffusion_lightning.training.unsupported import check_trainer
from diffusion_lightning.training.watchers import Watchers

STEP_LOSS = "train/loss_step"


class ScoreModule(TakesSteps, Restores, DrawsSamples, LightningModule):
    r"""Trains a denoiser by denoising score matching, and keeps the averaged weights that samples are drawn from.

    A training step minimizes the batch mean of :math:`\lambda(t)\lVert D(x_t, t) - x_0\rVert^2` (see
    :mod:`diffusion_lightning.objective`), clips the gradient's norm, steps the optimizer and then the EMA. Its random
    draws depend on (seed, epoch, batch) and the place of an example in the batch of all processes alone, so that a run
    resumed from a checkpoint of any step is, bit for bit, the run that stopped. Validation, sampling and prediction use
    the EMA weights.

    A step whose loss or gradient is not finite on any process changes neither the weights nor the optimizer's state nor
    the EMA, on no process; only the learning rate's schedule goes on. It is counted; too many in a row end the
    training, while in ``16-mixed`` those do not count by which the loss's scale is found.

    Logged: ``train/loss_step`` and ``train/skipped_steps``, ``train/loss_epoch`` and, with noise that is the same in
    every epoch, ``val/loss``, with ``condition_dropout`` also without the condition, ``val/loss_unconditional``; all of
    them over all processes.

    Args:
        network: called ``network(x, time_signal, **conditions)``; it must keep its constructor's arguments as
            attributes.
        sde: the forward process.
        parameterization: what the network's output means.
        objective: the loss; ``simple`` weighting at uniform times if left out.
        ema_decay: d of :class:`EMA`, in [0, 1].
        optimizer: makes the optimizer from the trainable parameters; AdamW at 2e-4 if left out.
        lr_scheduler: makes a scheduler from the optimizer; none if left out. A ``ReduceLROnPlateau`` is stepped after
            each epoch in which its ``monitor`` was measured, any other one after every optimizer step. One whose
            argument ``total_steps`` is left out (:class:`~diffusion_lightning.LinearDecay`, ``OneCycleLR``) is
            told the run's length.
        sampler: draws samples wherever no other is named; :class:`Heun` with 18 steps if left out.
        clip_norm: the largest norm of the gradient; ``None`` for no clipping. The trainer's ``gradient_clip_val``,
            if given, takes its place.
        max_skipped_steps: how many steps in a row may be skipped before training ends with a
            :class:`~diffusion_lightning.training.non_finite.NonFiniteError`, at least 1.
        compile: compile the network with ``torch.compile``, before it first runs in a trainer or in :meth:`sample`;
            ``"auto"``: on a GPU that gains by it, and not on a CPU. Checkpoints do not depend on it.
        shape: of one example, ``(C, H, W)`` or ``(D,)``; taken from the data at the first use if left out.
        augment: transforms training images and tells the network how, as ``augment_labels``; its ``augment_dim`` must
            be that of the augmentation.
        condition_dropout: the probability, in [0, 1), with which an example in training has none of its conditions, but
            the null class and its like, so that the network learns to do without, as classifier-free guidance needs
            it; 0.1 is usual.
        guidance: steers samples wherever no other guidance is named: a class of :mod:`diffusion_lightning.guidance`, or
            a ``functools.partial`` of it; a worse model is given as the path of its checkpoint. None if left out.

    Raises:
        ValueError: if an argument is out of its range, ``network`` could not be rebuilt from a checkpoint, or it cannot
            be told of the augmentation.
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
        max_skipped_steps: int = 10,
        compile: Compile = False,
        shape: Sequence[int] | None = None,
        augment: GeometricAugmentation | None = None,
        condition_dropout: float = 0.0,
        guidance: GuidanceCallable | None = None,
    ) -> None:
        super().__init__()
        # what goes into a checkpoint must be Python's own: a number of NumPy's could be saved, and never loaded
        ema_decay, clip_norm, max_skipped_steps, compile, condition_dropout = map(
            plain, (ema_decay, clip_norm, max_skipped_steps, compile, condition_dropout)
        )
        shape = plain(tuple(shape)) if shape is not None else None
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: must be positive, or null for no clipping")
        if max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps={max_skipped_steps}: must be at least 1")
        check_choice(compile)
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout={condition_dropout}: must be in [0, 1), 0 for none; 0.1 is usual")
        if condition_dropout > 0 and not has_nulls(network):
            lacks = "no null class, which takes the place of another" if taken_by(network) else "no condition to drop"
            without = "--model.condition_dropout 0" + " --model.guidance null" * (guidance is not None)
            raise ValueError(
                f"condition_dropout={condition_dropout}: {type(network).__name__} has {lacks}: give {without}, or a "
                "UNet with num_classes"
            )
        if augment is not None and (dim := getattr(network, "augment_dim", None)) != augment.dim:
            raise ValueError(
                f"augment: {type(network).__name__} has augment_dim={dim} and cannot be told of the augmentation; give "
                f"a network with augment_dim={augment.dim} (UNet), or augment=null"
            )
        self.denoiser = NetworkDenoiser(network, sde, parameterization)
        self.objective = objective if objective is not None else DenoisingScoreMatching()
        self.sampler = sampler if sampler is not None else Heun()
        self.sampler.check(sde)
        self.guidance = plain(guidance)
        check_own(self.guidance, self.denoiser)
        self._steering = Steering()
        self.ema = EMA((p for p in network.parameters() if p.requires_grad), ema_decay)
        self.optimizer = plain(optimizer) if optimizer is not None else partial(torch.optim.AdamW, lr=2e-4)
        self.lr_scheduler = plain(lr_scheduler)
        self.clip_norm = clip_norm
        self.max_skipped_steps = max_skipped_steps
        self.gradient_norm = None
        self.skipping = SkippedSteps(max_skipped_steps)
        self.epoch_loss = EpochLoss()
        self.draws_own_rows = True
        self.last_times = None
        self._resumption = Resumption()
        self._is_loaded = False  # from a checkpoint, and in evaluation mode for no other reason
        self.watchers = Watchers(plateau_monitor(self.lr_scheduler))
        """Who watches which metric of the training."""
        self._ends_after_step = False
        self.shape = tuple(shape) if shape is not None else None
        self.augment = augment
        self.condition_dropout = condition_dropout
        self.class_names: list[str] | None = None
        """What each label stands for, as the training data say; None where they have no names."""
        self.class_counts: list[int] | None = None
        """How many training examples have each label; None if the network has no classes, or it is not known."""
        self.groups: Groups | None = None
        """What the network's labels are, if not classes but groups found in the training data."""
        self.vector_names: list[str] | None = None
        """What the numbers of a vector are, as the training data say; None where they have no names."""
        self._data = DataCheck(network)
        self._evaluation = ExitStack()
        self._compile: Compile = compile  # what is still to be done
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
                "max_skipped_steps": max_skipped_steps,
                "compile": compile,
                "shape": describe(self.shape),
                "augment": describe(augment),
                "condition_dropout": condition_dropout,
                "guidance": describe(self.guidance),
            }
        )

    # ---- training

    def configure_callbacks(self) -> list[Callback]:
        """None of its own: it is where a trainer's settings can be refused before anything is made."""
        check_trainer(self.trainer)
        return []

    def check_data(self, data: Any, is_new: bool = True) -> None:
        """Raise a ValueError if the network cannot be trained on the data, as far as their attributes tell.

        Args:
            data: the data module.
            is_new: whether the network's training begins now, and it could still be another.
        """
        self._data.attributes(data, is_new)

    def prepare_data(self) -> None:
        """Read the examples and look at the first: what is wrong with them is said before a logger begins its run.

        Lightning calls it in one process per machine; the first of them does it.
        """
        if self.trainer.is_global_zero:
            self._data.sets(self.trainer)

    def setup(self, stage: str) -> None:
        """Learn from the data what sampling from a checkpoint needs: shape and classes; a fit starts anew."""
        if stage == TrainerFn.FITTING:
            if self._is_loaded and not self.training:
                self.train()  # Lightning leaves the mode as it finds it
            self._is_loaded = False
            self._resumption.forget()
            self.draws_own_rows = True
            self.epoch_loss.forget()
            self.skipping.begin()
            self._ends_after_step = False
        self._data.begin(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if self.shape is None and data is not None and hasattr(data, "shape"):
            self._set_shape(data.shape)
        if isinstance(data, BatchDataModule):
            self.class_names = data.class_names
            self.vector_names = data.vector_names
            told = data.class_counts() if self.denoiser.num_classes else None
            self.groups = data.groups if told is not None else None
            self.class_counts = self.groups.class_counts if self.groups is not None else told
        if stage == TrainerFn.FITTING and not self._data.is_trained:
            self._standardize(data)

    def _standardize(self, data: Any) -> None:
        """Tell a network that is told a vector the mean and standard deviation of the training examples'."""
        statistics = data.vector_statistics() if hasattr(data, "vector_statistics") else None
        if statistics is not None and "vector" in taken_by(self.network):
            self.network.standardize(*statistics)  # type: ignore[operator]

    def on_train_start(self) -> None:
        """Go on exactly where a checkpoint was saved, but for what is asked for otherwise now."""
        self._resumption.go_on(self)
        fuse(self.optimizers(use_pl_optimizer=False), self.device, self.trainer)

    def configure_model(self) -> None:
        """Split the network and its EMA over the processes, if the trainer's strategy is ``ModelParallelStrategy``."""
        if self.device_mesh is not None and not is_sharded(self.network):
            self._compile_once(blocks(self.network))
            shard(self.network, self.device_mesh)
            self.ema.take_over(p for p in self.network.parameters() if p.requires_grad)

    def on_fit_start(self) -> None:
        """Look who waits for which metric, which in a run that goes on is named as it was; and compile the network."""
        self.watchers.begin(self.trainer, self)
        self._compile_once()

    def on_validation_start(self) -> None:
        """Compile the network if that was asked for: now it is on its device."""
        self._compile_once()

    on_test_start = on_predict_start = on_validation_start

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the network draws (dropout): it does not depend on what came before."""
        torch.manual_seed(derive_seed(global_seed(), self.global_rank, self.current_epoch, batch_idx, Stream.DROPOUT))
        self.epoch_loss.begin(self.device, anew=batch_idx == 0)

    def training_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> dict[str, Tensor]:
        """The batch's mean ``loss``, and for callbacks the ``losses`` and ``times`` ``(B,)`` behind it, detached.

        A batch is ``(x (B, …) in [-1, 1], condition)``: labels ``(B,)``, or whatever else
        :mod:`diffusion_lightning.conditions` names.
        """
        self._data.batch(batch, self.trainer)
        x, condition = batch[0], self.condition(batch[1])
        if self.shape is None:
            self._set_shape(x.shape[1:])
        # the zero keeps the draws of a single process what they have always been
        stand = global_seed(), 0, self.current_epoch, batch_idx
        place = self.global_rank, self.trainer.world_size
        if self.condition_dropout > 0 and (null := self.denoiser.null(**condition)) is not None:
            seed = derive_seed(*stand, Stream.CONDITION)
            condition = drop_conditions(condition, null, self.condition_dropout, seed, *place)
        if self.augment is not None:
            x, condition["augment_labels"] = self.augment(x, derive_seed(*stand, Stream.AUGMENTATION), *place)
        drawn = self._draw(x, len(x), derive_seed(*stand, Stream.STEP))
        self.last_times = drawn[0]
        losses = self.objective(self.denoiser, x, drawn=drawn, **condition)
        loss = losses.mean()
        finite = loss.detach().isfinite()
        self.epoch_loss.add(loss.detach(), len(x))
        # over all processes only where it is written down: to synchronize every step would slow each one
        written = self._is_written(self.global_step + 1)
        logged = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean") if written else loss
        bar = self.trainer.progress_bar_callback
        # what is logged for a bar Lightning waits for after every batch, even without one
        self.log(STEP_LOSS, logged, prog_bar=bar is not None and not getattr(bar, "reads_loss", False))
        # a loss that is not finite makes every gradient so, and thereby, once the processes have added them up, those
        # of all: they skip this step together
        return {"loss": loss * torch.where(finite, 1.0, torch.nan), "losses": losses.detach(), "times": drawn[0]}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log how many steps have been skipped so far; end between two optimizer steps, if it was time to end."""
        if self._is_written(self.global_step):
            self.log("train/skipped_steps", float(self.skipped_steps))
        self.trainer.should_stop |= self._ends_after_step
        self._ends_after_step = put_off_the_end(self.trainer)

    def on_validation_end(self) -> None:
        """As after a batch, for what a validation in the middle of an epoch may end."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._ends_after_step |= put_off_the_end(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss over all processes, and step a ``ReduceLROnPlateau`` if its metric is new.

        Lightning would step it after this epoch's checkpoint, which would then lack the step.
        """
        self.skipping.read(self.trainer, self.network, self.last_times)
        self.log("train/loss_epoch", self.epoch_loss.mean(self.trainer))
        self.watchers.step_plateaus(self.trainer)
        self.watchers.tell_who_waits(self.trainer)

    # ---- validation and prediction, on the EMA weights

    def on_validation_epoch_start(self) -> None:
        """Make a sharded network whole: processes may have unequally many batches, and none may wait for the others."""
        if is_sharded(self.network):
            self._evaluation.enter_context(self.ema_weights())

    def on_validation_epoch_end(self) -> None:
        """Split the network again."""
        self._evaluation.close()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def validation_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> dict[str, Tensor]:
        """Log the loss at times and noise that are the same in every epoch, so that epochs compare.

        Returns the ``losses`` and ``times`` ``(B,)`` behind it.
        """
        self._data.batch(batch, self.trainer)
        x, condition = batch[0], self.condition(batch[1])
        # the last batch is smaller: it draws as much as the others, for how much falls to it depends on the processes
        size = max(len(x), getattr(self.trainer.datamodule, "batch_size", 0))  # type: ignore[attr-defined]
        drawn = self._draw(x, size, derive_seed(global_seed(), 0, batch_idx, Stream.VALIDATION))
        with self.ema_weights():
            losses = self.objective(self.denoiser, x, drawn=drawn, **condition)
            measured = {"": losses}
            if self.condition_dropout > 0:
                measured["_unconditional"] = self.objective(self.denoiser, x, drawn=drawn)
        for suffix, each in measured.items():
            name = ("test/loss" if self.trainer.testing else "val/loss") + suffix
            self.log(name, each.mean(), on_epoch=True, prog_bar=not suffix, sync_dist=True, batch_size=len(x))
        return {"losses": losses, "times": drawn[0]}

    def test_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> dict[str, Tensor]:
        """As :meth:`validation_step`, logged as ``test/loss``."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One sample for each index of ``batch`` ``(B,)``, by the module's sampler."""
        seed = derive_seed(global_seed(), int(batch[0]), Stream.PREDICTION)
        generator = torch.Generator(self.device).manual_seed(seed)
        asked = to_look_at(self, batch, getattr(self._trainer, "datamodule", None))
        return self.sample(num=len(batch), condition=asked, generator=generator)

    # ---- sampling

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the network has the EMA weights; afterwards, whatever happened, its own. May be nested.

        Every process must enter it, for a sharded network is put together here; inside, none waits for another.
        """
        with self.ema.average_parameters(), gathered(self.network):
            yield

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        self._compile_once()
        was_training = self.training
        try:
            self.eval()
            with self.ema_weights(), self._precision():
                yield
        finally:
            self.train(was_training)

    def _draw(self, x: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The times and the noise of x, which is (a part of) this process's ``size`` rows of the batch of all."""
        draw = draw_rows if self.draws_own_rows else draw_all
        return draw(self.objective, self.denoiser.sde, x, size, seed, self.trainer.global_rank, self.trainer.world_size)

    def _is_written(self, step: int) -> bool:
        """Whether the trainer writes down what is logged at this optimizer step, counted from 1."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and step % every == 0

    def own_part(self, of_processes: list[Any]) -> Tensor:
        """This process's of the numbers that each process had; of another number of processes, the first takes all."""
        return own_part(of_processes, self)

    def _compile_once(self, parts: list[nn.Module] | None = None) -> None:
        # a network is split before it is moved to its device
        device = self.device if parts is None else self.trainer.strategy.root_device
        compile_in_place(self.network, self._compile, device, parts)
        self._compile = False

    def _precision(self) -> Any:
        trainer = self._trainer
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()

    # ---- checkpoints

    def changes(self, checkpoint: dict[str, Any]) -> list[Change]:
        """The options in which this module differs from a checkpoint's."""
        parameters = inspect.signature(ScoreModule).parameters.values()
        defaults = {p.name: describe(p.default) for p in parameters if p.default is not inspect.Parameter.empty}
        return changes(checkpoint["hyper_parameters"], self.hparams, defaults)

    def _set_shape(self, shape: Sequence[int]) -> None:
        self.shape = plain(tuple(shape))
        self.hparams["shape"] = list(self.shape)
