"""What a run reports of itself, by a clock that only the work moves: then every second and every rate is known."""

import csv
import math
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler

from diffusion_lightning import EmbeddedMNIST, LastCheckpoint, RunLogger, RunReport, cli
from diffusion_lightning.callbacks import performance
from diffusion_lightning.callbacks.performance import PARTS, peak_memory_gb
from diffusion_lightning.callbacks.sampling import Measurement, SamplingCallback

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")

TINY = """
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 4
  limit_val_batches: 1
  log_every_n_steps: 2
  logger: null
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: null
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
data: {init_args: {batch_size: 8}}
"""

# found by the command through PYTHONPATH: writes down what each process gives its loggers
SPY = """
import torch
from lightning.pytorch import Callback
from diffusion_lightning.callbacks import performance

SEEN, original = {}, performance._log


def log(trainer, metrics, step):
    SEEN.setdefault(step, {}).update(metrics)
    original(trainer, metrics, step)


performance._log = log


class Spy(Callback):
    def on_fit_end(self, trainer, pl_module):
        torch.save(SEEN, f"rank{trainer.global_rank}.pt")
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The report's clock: ``now`` seconds until somebody adds to it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(performance, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


class SlowDigits(EmbeddedMNIST):
    """2 s to find a batch and 1 s to bring it to the device."""

    def __init__(self, digits: Any, clock: Any) -> None:
        super().__init__(batch_size=8)
        self._images, self.clock = tuple(SlowSet(part, clock) for part in digits), clock

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.clock.now += 1
        return super().on_after_batch_transfer(batch, dataloader_idx)


class SlowSet:
    def __init__(self, images: Any, clock: Any) -> None:
        self.images, self.clock = images, clock

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> Any:
        self.clock.now += 2
        return self.images[indices]


class Work(Callback):
    """5 s for the first training batch of an epoch, 10 s for the second …; 3 s for each of validation; and so on."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def on_fit_start(self, *_: Any) -> None:
        self.clock.now += 19

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.now += 5 * (batch_idx + 1)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.clock.now += 3

    def on_save_checkpoint(self, *_: Any) -> None:
        self.clock.now += 11

    def on_train_epoch_end(self, *_: Any) -> None:
        self.clock.now += 17


EveryEpoch = partial(LastCheckpoint, every_minutes=0)


class Draw(SamplingCallback):
    """7 s for a picture."""

    sampler = None
    every_n_epochs = 1

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def on_train_epoch_end(self, *_: Any) -> None:
        self.clock.now += 7


class Measure(Measurement):
    """13 s for a measurement, whose results are given."""

    sampler = None
    every_n_epochs = 1

    def __init__(self, clock: Any, results: list[float]) -> None:
        self.clock, self.results = clock, results

    def evaluate(self, trainer: Any, pl_module: Any) -> None:
        self.clock.now += 13
        pl_module.log("fid/given@2", self.results[trainer.current_epoch], on_step=False, on_epoch=True)


@pytest.fixture
def fit(make_module, make_trainer, digits, clock, tmp_path):
    """Trains a small module on slow digits with the report and the given callbacks, in tmp_path/run/version_0."""

    def run(*callbacks: Callback, module: Any = None, **settings: Any) -> Any:
        report = RunReport()
        settings = {"logger": RunLogger(tmp_path, "run"), **settings}
        trainer = make_trainer(callbacks=[Work(clock), report, *callbacks], **settings)
        trainer.fit(module or make_module(), datamodule=SlowDigits(digits, clock))
        summary = str(report.summary()).splitlines()
        return SimpleNamespace(trainer=trainer, summary=summary, log=logged(tmp_path / "run"))

    return run


def logged(run: Path) -> dict[int, dict[str, float]]:
    """What metrics.csv has of each step; nothing if it is not there."""
    steps: dict[int, dict[str, float]] = {}
    path = run / "version_0" / "metrics.csv"
    if path.is_file():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                steps.setdefault(int(row["step"]), {}).update({k: float(v) for k, v in row.items() if v != ""})
    return steps


def times(values: dict[str, float]) -> dict[str, float]:
    return {part: values[f"time/{part}"] for part in PARTS}


# ---- time


def test_the_parts_add_up_to_the_time_that_passed(clock):
    draw, parts = random.Random(0), performance._PartTimes()
    depth = 0
    for _ in range(500):
        clock.now += draw.randrange(8)
        if depth and draw.random() < 0.5:
            parts.leave()
            depth -= 1
        else:
            parts.enter(draw.choice(PARTS))
            depth += 1
        assert sum(parts.read().values()) == clock.now - 100
    assert all(parts.read().values())


def test_only_the_training_loop_is_split_up(clock):
    parts = performance._PartTimes()
    for part in ("step", "evaluation", "data"):
        parts.enter(part)
        clock.now += 1
    parts.leave()
    parts.leave()
    clock.now += 8
    parts.enter("data")
    clock.now += 16
    assert parts.read() == {**dict.fromkeys(PARTS, 0.0), "step": 9, "evaluation": 2, "data": 16}


def test_each_epoch_has_the_seconds_of_its_parts(fit, clock):
    run = fit(Draw(clock), Measure(clock, [5.0, 3.0]), EveryEpoch(), enable_checkpointing=True, max_epochs=2)
    expected = {
        "data": 3 * (2 + 1),
        "step": 5 + 10 + 15,
        "sampling": 7,
        "evaluation": 2 * (2 + 1 + 3) + 13,
        "checkpoint": 11,
        "other": 17,
    }
    assert {step: times(values) for step, values in run.log.items() if "time/step" in values} == {
        2: expected,
        5: {**expected, "checkpoint": 22},  # the second one of the epoch before is saved when this one begins
    }
    assert [run.log[step]["epoch"] for step in (2, 5)] == [0, 1]


def test_the_users_profiler_sees_all_of_it(fit, clock, monkeypatch):
    profiler = SimpleProfiler()
    monkeypatch.setattr(profiler, "describe", lambda: None)  # prints
    run = fit(profiler=profiler)
    assert run.trainer.profiler is profiler
    assert len(profiler.recorded_durations["run_training_batch"]) == 3
    assert len(profiler.recorded_durations["[Callback]RunReport.on_train_batch_end"]) == 3
    assert profiler.current_actions == {}
    assert times(run.log[2])["data"] == 9


def test_a_failed_run_leaves_the_profiler_and_no_summary(make_module, make_trainer, make_data):
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            raise RuntimeError("on purpose")

    report = RunReport()
    trainer = make_trainer(callbacks=[report, Fails()])
    own = trainer.profiler
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(make_module(), datamodule=make_data())
    assert trainer.profiler is own
    assert report.summary() is None


# ---- speed


def test_the_rate_is_of_the_steps_since_the_last_logging(fit):
    """Validation after every batch is not in it."""
    run = fit(limit_train_batches=4, log_every_n_steps=2, val_check_interval=1)
    rates = {step: values["perf/examples_per_s"] for step, values in run.log.items() if "perf/examples_per_s" in values}
    first, second = 16 / (3 + 5 + 3 + 10), 16 / (3 + 15 + 3 + 20)
    assert rates == {1: pytest.approx(first, rel=1e-6), 3: pytest.approx(second, rel=1e-6)}
    assert run.log[3]["perf/examples_per_s_rank"] == pytest.approx(second, rel=1e-6)
    assert run.log[3]["train/loss_step"] > 0  # at the steps at which Lightning writes


def test_accumulated_batches_all_count(fit):
    run = fit(limit_train_batches=4, accumulate_grad_batches=2)
    rates = {step: values["perf/examples_per_s"] for step, values in run.log.items() if "perf/examples_per_s" in values}
    first, second = 16 / (3 + 5 + 3 + 10), 16 / (3 + 15 + 3 + 20)
    assert rates == {0: pytest.approx(first, rel=1e-6), 1: pytest.approx(second, rel=1e-6)}
    assert run.summary[1] == "  steps     2 in 1 epoch"
    assert run.summary[2] == f"  speed     {32 / 62:.0f} examples/s in training"


# ---- what goes with it


def test_learning_rate_decay_gradient_and_memory_of_each_step(fit, make_module):
    norms = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

    module = make_module(
        optimizer=partial(torch.optim.SGD, lr=0.5),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.5, total_iters=2),
        ema_decay=0.2,
        clip_norm=1e-3,
    )
    run = fit(Watch(), module=module)
    assert [run.log[n]["train/lr"] for n in range(3)] == [0.5, 0.375, 0.25]
    assert [run.log[n]["train/ema_decay"] for n in range(3)] == [2 / 11, 0.2, 0.2]
    assert [run.log[n]["train/gradient_norm"] for n in range(3)] == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 1e-3
    assert 0.01 < run.log[0]["perf/memory_gb"] <= run.log[2]["perf/memory_gb"] <= peak_memory_gb(torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system tells its memory otherwise")
def test_memory_is_what_the_system_says():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_gb(torch.device("cpu")) == pytest.approx(int(line.split()[1]) * 1024 / 1e9, rel=0.02)


def test_the_summarys_memory_is_that_of_the_training_device(fit, monkeypatch):
    """By a strategy whose root device is a GPU once the fit is over and Lightning has moved the module to the CPU."""

    class Elsewhere(Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            assert pl_module.device == torch.device("cpu")
            monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda", 1))

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {torch.device("cuda", 1): 7_250_000_000}.__getitem__)
    assert fit(Elsewhere()).summary[3] == "  memory    7.25 GB at its peak"


# ---- the table


def test_the_summary(fit, clock, monkeypatch):
    monkeypatch.setattr(performance, "peak_memory_gb", lambda device: 1.5)
    run = fit(
        Draw(clock),
        Measure(clock, [5.0, 3.0, math.nan, 4.0]),
        EveryEpoch(),
        enable_checkpointing=True,
        max_epochs=4,
    )
    last = run.trainer.callback_metrics
    assert run.summary[:8] == [
        "Summary",
        "  steps     12 in 4 epochs",
        "  speed     1 examples/s in training",
        "  memory    1.50 GB at its peak",
        "  time 07:39  data   step  sampling  evaluation  checkpoint  other   total",
        "    seconds   36.0  120.0      28.0       100.0        88.0   87.0   459.0",
        "    share     7.8%  26.1%      6.1%       21.8%       19.2%  19.0%  100.0%",
        "  metric      fid/given@2  train/loss_epoch  val/loss",
    ]
    assert [line.split()[:2] for line in run.summary[8:]] == [["best", "3"], ["last", "4"]]
    assert run.summary[9].split()[2:] == [f"{last[name].item():.4g}" for name in ("train/loss_epoch", "val/loss")]
    assert len(run.summary) == 10


class Own(Callback):
    """Metrics of one's own: of epochs, of steps, of both, and what a monitor of Lightning's leaves."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("own/step", float(batch_idx))
        pl_module.log("own/both", float(batch_idx), on_step=True, on_epoch=True)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/accuracy", [0.5, 0.9, 0.7][trainer.current_epoch])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for name in self.names:
            pl_module.log(name, [3.0, math.nan, 2.0][trainer.current_epoch])
        trainer.callback_metrics["lr-AdamW"] = torch.tensor(0.1)


def test_metrics_of_ones_own_are_in_the_summary(fit):
    run = fit(Own("test/mine"), max_epochs=3)
    table = [line.split() for line in run.summary[-4:]]
    assert table == [
        ["metric", "lowest", "highest", "last"],
        ["own/both_epoch", "1", "1", "1"],  # of the batches 0, 1, 2
        ["test/mine", "2", "3", "2"],
        ["val/accuracy", "0.5", "0.9", "0.7"],
    ]


class Read(Callback):
    """What FIDCallback logs of a classifier, and an error that is of nothing else."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        share = [0.25, 0.75, 0.5][trainer.current_epoch]
        names = ("agreement/mnist@9", "agreement_error/mnist@9", "legible/mnist@9", "my_error/x")
        pl_module.log_dict(dict.fromkeys(names, share))
        pl_module.log("agreement/mnist_real@20", 0.96875)


def test_the_best_share_is_the_highest_and_that_of_real_images_stands_beside(fit):
    run = fit(Read(), max_epochs=3)
    assert [re.split("  +", line.strip()) for line in run.summary[-5:]] == [
        ["share of samples", "best", "last", "of real images"],
        ["agreement/mnist@9", "0.75", "0.5", "0.9688"],
        ["legible/mnist@9", "0.75", "0.5"],
        ["metric", "lowest", "highest", "last"],
        ["my_error/x", "0.25", "0.75", "0.5"],
    ]
    run = fit(Read(), Own(*(f"many/{n:02}" for n in range(40))), max_epochs=3)
    assert len(run.summary) + 7 <= 24  # as below


def test_more_metrics_than_a_screen_has_are_counted(fit):
    run = fit(Own(*(f"many/{n:02}" for n in range(40))), max_epochs=3)
    first = next(place for place, line in enumerate(run.summary) if "lowest" in line)
    names = [line.split()[0] for line in run.summary[first + 1 : -1]]
    assert names == [f"many/{n:02}" for n in range(performance.MOST_OTHERS)]
    assert run.summary[-1].strip() == f"{42 - performance.MOST_OTHERS} more in metrics.csv"  # with those of Own
    assert len(run.summary) + 7 <= 24  # with the lines that say what to do next
    assert {f"many/{n:02}" for n in range(40)} < set().union(*run.log.values())


def test_without_measurements_and_loggers(fit):
    run = fit(logger=False)
    assert run.log == {}
    assert run.summary[-3].split() == ["metric", "train/loss_epoch", "val/loss"]
    assert run.summary[4].startswith("  time 01:27")
    run = fit(logger=False, limit_val_batches=0)
    assert run.summary[-3].split() == ["metric", "train/loss_epoch"]


def test_skipped_steps_are_told(fit):
    class Hurt(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.fit_loop.batch_idx < 2:
                next(pl_module.network.parameters()).grad.fill_(math.nan)

    assert fit(Hurt()).summary[1] == "  steps     3 in 1 epoch; 2 skipped"


# ---- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_ends_with_one_summary(folder, capsys):
    own = ["--trainer.callbacks+", "diffusion_lightning.RunReport"]
    cli.main(["fit", "--config", QUICKSTART, "--config", "tiny.yaml", *own])
    said = capsys.readouterr().out
    assert said.count("Summary") == 1
    assert said.index("\n  steps     4 in 1 epoch\n") < said.index("Done after 4 steps")
    saved = ["--config", "runs/quickstart/version_0/config.yaml", "--ckpt_path", "last"]
    cli.main(["fit", *saved, "--trainer.max_epochs", "2"])
    assert "\n  steps     4 in 1 epoch; 8 in 2 epochs in all\n" in capsys.readouterr().out


def test_two_processes_add_up_their_rates(folder, environment):
    command = [sys.executable, "-m", "diffusion_lightning", "fit", "--config", QUICKSTART, "--config", "tiny.yaml"]
    done = subprocess.run(
        [*command, "--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.callbacks+", "spy.Spy"],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,  # one that waits for the other would wait for ever
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(2))
    written = logged(folder / "runs" / "quickstart")
    for step in (1, 3):
        rates = [rank[step]["perf/examples_per_s_rank"] for rank in (first, second)]
        assert rates[0] != rates[1]
        total = pytest.approx(sum(rates), rel=1e-5)
        assert total == first[step]["perf/examples_per_s"] == second[step]["perf/examples_per_s"]
        assert total == written[step]["perf/examples_per_s"]
        assert written[step]["perf/examples_per_s_rank"] == rates[0]
    assert done.stdout.count("Summary") == 1
    assert "by each of 2 processes" in done.stdout
