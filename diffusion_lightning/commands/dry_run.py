"""`lightning fit --dry_run`: what a training would be, how much arithmetic, and how long, by a few steps of it."""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from diffusion_lightning.callbacks.performance import peak_memory_gb
from diffusion_lightning.callbacks.sampling import SamplingCallback
from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.guidance import Guidance
from diffusion_lightning.samplers import Sampler
from diffusion_lightning.training.guided import GuidanceChoice
from diffusion_lightning.training.module import ScoreModule

TRIAL_STEPS = 12
"""Batches that are trained on; the first third is not timed."""

DEFAULT_EPOCHS = 1000
"""Of Lightning, where a config gives neither epochs nor steps."""


@dataclass
class Length:
    """How long a training is, as its config says it; ``None`` and −1 as in Lightning's Trainer."""

    max_epochs: int | None
    max_steps: int
    limit_train_batches: int | float | None
    accumulate_grad_batches: int

    def batches(self, per_epoch: int) -> tuple[int, float]:
        """The batches of an epoch and of the whole training, where the data has ``per_epoch``; infinite without end."""
        limit = self.limit_train_batches
        if limit is not None:
            per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
        epochs = math.inf if self.max_epochs == -1 else self.max_epochs
        if epochs is None:
            epochs = DEFAULT_EPOCHS if self.max_steps == -1 else math.inf
        steps = math.inf if self.max_steps == -1 else self.max_steps
        return per_epoch, min(epochs * per_epoch, steps * self.accumulate_grad_batches)


class _Batches(Callback):
    """Seconds from each batch's start to the next one's, and what is in them."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.size = 0
        self.example: tuple[Tensor, dict[str, Tensor]]
        """One x ``(1, …)``, and what the network is told of it."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, ScoreModule)
        if not self.starts:
            condition = pl_module.condition(batch[1])
            self.size, self.example = len(batch[0]), (batch[0][:1], {name: c[:1] for name, c in condition.items()})
        synchronize(pl_module.device)
        self.starts.append(time.perf_counter())

    def typical(self) -> float:
        """The median, without the first ones."""
        seconds = [later - earlier for earlier, later in zip(self.starts, self.starts[1:], strict=False)]
        return statistics.median(seconds[len(seconds) // 3 :])


class _Nothing(Denoiser):
    """Costs nothing: for counting a sampler's evaluations."""

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return torch.zeros_like(x)


def dry_run(trainer: Trainer, module: ScoreModule, data: LightningDataModule, length: Length) -> list[tuple[str, str]]:
    """Train for :data:`TRIAL_STEPS` batches without any trace on disk, and tell what the whole would take.

    The times are of this machine as it is now. Validation and what a measurement computes beside its samples are not
    in them, and of a solver with steps of its own the evaluations are a lower bound.

    Args:
        trainer: made with ``fast_dev_run=TRIAL_STEPS``; loses its callbacks that draw samples.
        module: to be trained; its weights are changed by the trial.
        data: the examples.
        length: of the training that is meant.

    Returns:
        Lines of a table, what and how much.
    """
    drawing = [callback for callback in trainer.callbacks if isinstance(callback, SamplingCallback)]  # type: ignore[attr-defined]
    seen = _Batches()
    trainer.callbacks = [*(c for c in trainer.callbacks if c not in drawing), seen]  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data)
    device = trainer.strategy.root_device
    memory = peak_memory_gb(device)
    module.to(device)  # from the CPU, where a fit leaves it

    x, condition = seen.example[0].to(device), {name: rows.to(device) for name, rows in seen.example[1].items()}
    per_epoch, batches = length.batches(len(data.train_dataloader()))
    examples = seen.size * trainer.world_size
    forward, step = flops(module, x, condition)
    seconds = seen.typical()
    rows = [
        ("network", f"{type(module.network).__name__}, {_weights(module):,} weights to train"),
        ("forward pass", f"{_engineering(forward)}FLOP an example"),
        ("training step", f"{_engineering(step)}FLOP an example"),
        ("batch", f"{seen.size} examples in each of {trainer.world_size} processes"),
        ("length", f"{_count(batches)} batches, {per_epoch:,} an epoch"),
        ("speed", f"{examples / seconds:,.0f} examples/s, {_engineering(step * examples / seconds)}FLOP/s"),
        ("training", _interval(batches * seconds)),
    ]
    evaluation = seconds_per_evaluation(trainer, module, x, condition)
    for callback in drawing:
        sampler: Sampler = callback.sampler or module.sampler
        nfe = callback.per_evaluation * evaluations(sampler, module, callback.guidance)
        num = callback.num_drawn
        cost = nfe * num * evaluation / trainer.world_size
        due = math.ceil(batches / per_epoch / callback.every_n_epochs) if batches < math.inf else math.inf
        what = f"{_count(due)} × {num:,} samples of {nfe} evaluations ({type(sampler).__name__})"
        rows.append((type(callback).__name__, f"{_interval(due * cost)}: {what}"))
    if memory is not None:
        rows.append(("memory", f"{memory:.2f} GB at the peak of {TRIAL_STEPS} steps"))
    return rows


def flops(module: ScoreModule, x: Tensor, condition: dict[str, Any]) -> tuple[float, float]:
    """Floating-point operations for one example: of the denoiser, and of the loss with its gradients.

    By PyTorch's counter: matrix products, convolutions and attention, a multiplication and an addition each.
    """
    t = torch.full((len(x),), module.denoiser.sde.T, device=x.device)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        module.denoiser.denoise(x, t, **condition)
    with FlopCounterMode(display=False) as step:
        module.objective(module.denoiser, x, **condition).mean().backward()
    module.zero_grad()
    return forward.get_total_flops() / len(x), step.get_total_flops() / len(x)


def seconds_per_evaluation(
    trainer: Trainer, module: ScoreModule, x: Tensor, condition: dict[str, Tensor], size: int = 64
) -> float:
    """Of the denoiser for one of ``size`` examples, at the trainer's precision."""
    x, *rows = (rows.expand(size, *rows.shape[1:]).contiguous() for rows in (x, *condition.values()))
    told = dict(zip(condition, rows, strict=True))
    t = torch.full((size,), module.denoiser.sde.T, device=x.device)
    for _ in range(2):  # the first one warms up
        synchronize(x.device)
        start = time.perf_counter()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            module.denoiser.denoise(x, t, **told)
        synchronize(x.device)
        seconds = time.perf_counter() - start
    return seconds / size


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed what it was told to; nothing else waits."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluations(sampler: Sampler, module: ScoreModule, guidance: GuidanceChoice = "own") -> int:
    """How often a sampler evaluates networks for one sample that is asked for something, steered by that guidance."""
    assert module.shape is not None
    nothing, denoiser = _Nothing(module.denoiser.sde), module.guided(guidance)
    if isinstance(denoiser, Guidance):
        for name, inside in list(denoiser.named_children()):
            if isinstance(inside, Denoiser):
                setattr(denoiser, name, nothing)
    else:
        denoiser = nothing
    asked = torch.zeros(1, dtype=torch.int64)
    sampler(denoiser, (1, *module.shape), generator=torch.Generator(), labels=asked)
    return sampler.nfe


def _weights(module: ScoreModule) -> int:
    return sum(p.numel() for p in module.network.parameters() if p.requires_grad)


def _engineering(value: float) -> str:
    """With three digits and a prefix of the SI."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def _interval(seconds: float) -> str:
    return "without end" if seconds == math.inf else tqdm.format_interval(math.ceil(seconds))


def _count(number: float) -> str:
    return "∞" if number == math.inf else f"{number:,.0f}"
