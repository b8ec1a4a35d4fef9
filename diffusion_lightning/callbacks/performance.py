"""How a run performs: its speed and what goes with it as it trains, where its time goes, and a table at its end."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from tqdm import tqdm

from diffusion_lightning.callbacks.sampling import Measurement, SamplingCallback
from diffusion_lightning.metrics.evaluation import is_spread
from diffusion_lightning.tables import Summary
from diffusion_lightning.training.module import ScoreModule

PARTS = ("data", "step", "sampling", "evaluation", "checkpoint", "other")

RESULTS = ("fid/", "fid_infinity/", "kid/", "sliced_wasserstein@", "val/loss", "train/loss_epoch")
"""How the names begin of the metrics whose best and last values the summary shows; the best is the lowest."""

SHARES = ("agreement/", "legible/")
"""How the names begin of shares of samples; the best is the highest, and that of real images stands beside."""

OF_THE_MACHINE = ("perf/", "time/", "lr-")
"""How the names begin of what is measured at the machine or set, whoever logs it; the summary shows no value of it."""

MOST_OTHERS = 5
"""Rows for shares and metrics of other names, so that the summary and what follows it are no more than a screen."""


class RunReport(Callback):
    """Logs speed, memory, gradient and learning rate of training and the seconds of its parts, and sums the run up.

    Logged at the steps that the trainer logs, of this rank unless said otherwise:

    - ``perf/examples_per_s``, the sum of all ranks, and ``perf/examples_per_s_rank``: examples since the last logging
      over the seconds that training them took; validation, sampling and checkpoints in between are not in them;
    - ``perf/memory_gb``: the process's largest resident memory so far, on a GPU the largest that PyTorch allocated;
    - ``train/lr`` of the step, ``train/gradient_norm`` before clipping, ``train/ema_decay``.

    Logged for each epoch, with its last step: the seconds of each part, which add up to those of the epoch.

    - ``time/data``: waiting for batches and bringing them to the device;
    - ``time/step``: the rest of the training loop, its hooks and logging among them;
    - ``time/sampling``: callbacks that draw samples to be looked at;
    - ``time/evaluation``: validation, and callbacks that measure samples;
    - ``time/checkpoint``: saving checkpoints, the one of an epoch's end in the epoch after it;
    - ``time/other``: what is left.

    The parts are those of Lightning's profiling. A profiler of the user's goes on seeing all of it.

    The summary has every metric that was logged for whole epochs, whoever logged it; of names that it does not know,
    and of which it cannot say whether low or high is good, the lowest and the highest value.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._times: _PartTimes | None = None
        self._examples = 0
        self._first_step: int | None = None
        self._lr: float | Tensor = 0.0
        self._logged = 0, 0.0
        self._epochs = 0
        self._ended_epoch: int | None = None
        self._epoch_began: dict[str, float] = {}
        self._results: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # lowest, highest, last
        self._of_steps: set[str] = set()
        self._summary: Summary | None = None

    # ---- the time of each part

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._reset()
            self._times = _PartTimes()
            trainer.profiler = _PartProfiler(trainer.profiler, self._times, _parts_of_actions(trainer))  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._times is not None:
            self._times.enter("evaluation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._times is not None:
            self._times.leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._times is not None:
            assert isinstance(pl_module, ScoreModule)
            self._summary = self._summarize(trainer, pl_module, self._times.read())
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        self._times = None
        if isinstance(trainer.profiler, _PartProfiler):  # type: ignore[attr-defined]
            trainer.profiler = trainer.profiler.inner  # type: ignore[attr-defined]

    # ---- steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._times is not None
        self._first_step = trainer.global_step
        self._epoch_began = self._times.read()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        # at the batch's end it is already that of the next step
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._times is not None
        assert isinstance(pl_module, ScoreModule)
        self._examples += len(batch[0])
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # or what the steps still compute would be validation's time
        # the steps that train/loss_step is written at
        if trainer.fit_loop._should_accumulate() or not trainer._logger_connector.should_update_logs:  # type: ignore[attr-defined]
            return
        now = self._examples, _training(self._times.read())
        rate = (now[0] - self._logged[0]) / (now[1] - self._logged[1])
        self._logged = now
        total = trainer.strategy.reduce(torch.tensor(rate, device=pl_module.device), reduce_op="sum")
        values = {
            "perf/examples_per_s": total,
            "perf/examples_per_s_rank": rate,
            "perf/memory_gb": peak_memory_gb(pl_module.device),
            "train/gradient_norm": pl_module.gradient_norm,
            "train/ema_decay": pl_module.ema.current_decay,
            "train/lr": self._lr,
        }
        known = {name: float(value) for name, value in values.items() if value is not None}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # type: ignore[attr-defined]
        _log(trainer, {**known, "epoch": trainer.current_epoch}, step)

    # ---- epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended_epoch = trainer.current_epoch
        for logged in (trainer._results or {}).values():  # type: ignore[attr-defined]
            if logged.meta.on_step:
                # of one that is logged for steps and epochs, the epoch's has a name of its own
                self._of_steps |= {logged.meta.name, f"{logged.meta.name}_step"}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report_epoch(trainer)

    def _report_epoch(self, trainer: Trainer) -> None:
        """Only now has the epoch before ended: other callbacks' work at its end may come after this one's."""
        if self._ended_epoch is None:
            return
        assert self._times is not None
        seconds = self._times.read()
        metrics = {f"time/{part}": seconds[part] - self._epoch_began[part] for part in PARTS}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1  # type: ignore[attr-defined]
        _log(trainer, {**metrics, "epoch": self._ended_epoch}, step)
        for name, value in trainer.callback_metrics.items():
            if name not in self._of_steps and not name.startswith(OF_THE_MACHINE):
                lowest, highest, _ = self._results.get(name, (value, value, value))
                self._results[name] = torch.fmin(lowest, value), torch.fmax(highest, value), value
        self._epochs += 1
        self._epoch_began, self._ended_epoch = seconds, None

    # ---- the end

    def summary(self) -> Summary | None:
        """What the last ``fit`` came to; None before its end, and where it failed."""
        return self._summary

    def _summarize(self, trainer: Trainer, pl_module: ScoreModule, seconds: Mapping[str, float]) -> Summary:
        in_all = f"{trainer.global_step} in {_epochs(trainer.current_epoch)}"
        if self._first_step is None:
            return Summary([("steps", f"none in this part; {in_all} in all")])
        steps = f"{trainer.global_step - self._first_step} in {_epochs(self._epochs)}"
        if self._first_step > 0:
            steps += f"; {in_all} in all"
        if pl_module.skipped_steps:
            steps += f"; {pl_module.skipped_steps} skipped"
        # not the module's device: Lightning has moved it to the CPU by now
        total, memory = sum(seconds.values()), peak_memory_gb(trainer.strategy.root_device)
        ranks = trainer.world_size
        of = f", {self._examples / _training(seconds):,.0f} by each of {ranks} processes" if ranks > 1 else ""
        speed = f"{self._examples * ranks / _training(seconds):,.0f} examples/s in training{of}"
        summary = Summary([("steps", steps), ("speed", speed)])
        if memory is not None:
            summary.facts.append(("memory", f"{memory:.2f} GB at its peak{' in this process' if ranks > 1 else ''}"))
        times = {**seconds, "total": total}
        summary.tables.append(
            [
                [f"time {tqdm.format_interval(round(total))}", *times],
                ["seconds", *(f"{value:.1f}" for value in times.values())],
                ["share", *(f"{value / total:.1%}" for value in times.values())],
            ]
        )
        known: list[list[str]] = []
        shares: list[list[str]] = []
        others: list[list[str]] = []
        real = {name.split("_real@")[0]: value for name, (_, _, value) in self._results.items() if "_real@" in name}
        for name, (lowest, highest, last) in sorted(self._results.items()):
            values = [f"{value.item():.4g}" for value in (lowest, highest, last)]
            if is_spread(name, self._results) or (name.startswith(SHARES) and "_real@" in name):
                continue
            if name.startswith(SHARES):
                of_real = real.get(name.split("@")[0])
                shares.append([name, *values[1:], "" if of_real is None else f"{of_real.item():.4g}"])
            else:
                (known if name.startswith(RESULTS) else others).append([name, *values])
        if known:
            names, best, _, newest = zip(*known, strict=True)
            summary.tables.append([["metric", *names], ["best", *best], ["last", *newest]])
        if shares:
            summary.tables.append([["share of samples", "best", "last", "of real images"], *shares])
        if others:
            most = max(MOST_OTHERS - len(summary.tables[-1]) * bool(shares), 1)
            summary.tables.append([["metric", "lowest", "highest", "last"], *others[:most]])
            if len(others) > most:
                summary.tables[-1].append([f"{len(others) - most} more in metrics.csv", "", "", ""])
        return summary


class _PartTimes:
    """Shares out the time that passes: every moment belongs to one part, so that all of them add up to the whole."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._entered = ["other"]
        self._since = time.perf_counter()

    def enter(self, part: str) -> None:
        """From now on it is ``part``; but what is neither step nor other is not split: its own stays its own."""
        self._pass()
        current = self._entered[-1]
        self._entered.append(part if current in ("step", "other") else current)

    def leave(self) -> None:
        """It is again what it was before the last :meth:`enter`."""
        self._pass()
        self._entered.pop()

    def read(self) -> dict[str, float]:
        """The seconds of each part until now."""
        self._pass()
        return dict(self._seconds)

    def _pass(self) -> None:
        now = time.perf_counter()
        self._seconds[self._entered[-1]] += now - self._since
        self._since = now


class _PartProfiler(Profiler):
    """Tells the parts of the work by the actions that Lightning profiles, and passes them on to another profiler.

    Args:
        inner: the trainer's profiler, whose place it takes.
        times: which is told.
        parts: of the actions that count; all others belong to what they are a part of.
    """

    def __init__(self, inner: Profiler, times: _PartTimes, parts: Mapping[str, str]) -> None:
        super().__init__()
        self.inner = inner
        self._times = times
        self._parts = parts

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        part = self._parts.get(action_name)
        if part is not None:
            self._times.enter(part)

    def stop(self, action_name: str) -> None:
        if action_name in self._parts:
            self._times.leave()
        self.inner.stop(action_name)


def _log(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    """Straight to the loggers: ``LightningModule.log`` takes a third of a millisecond for each value."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)


def _parts_of_actions(trainer: Trainer) -> dict[str, str]:
    """Which part each action of Lightning's profiling is; an epoch's validation has none, only its hooks."""
    parts = {
        "run_training_epoch": "step",
        "[_TrainingEpochLoop].train_dataloader_next": "data",
        f"[Strategy]{type(trainer.strategy).__name__}.batch_to_device": "data",
        "save_checkpoint": "checkpoint",
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SamplingCallback):
            part = "evaluation" if isinstance(callback, Measurement) else "sampling"
            parts[f"[Callback]{callback.state_key}.on_train_epoch_end"] = part
    return parts


def _training(seconds: Mapping[str, float]) -> float:
    """Of these seconds, those that training examples took."""
    return seconds["data"] + seconds["step"]


def peak_memory_gb(device: torch.device) -> float | None:
    """The most memory in 10⁹ bytes that was in use: PyTorch's on a GPU, else the process's; None if not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return None
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _epochs(count: int) -> str:
    return f"{count} epoch" + "s" * (count != 1)
