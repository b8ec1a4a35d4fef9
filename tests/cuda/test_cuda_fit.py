"""A fit on a CUDA device: it resumes exactly, waits for nothing, leaves bad steps out by itself, and compiles."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from diffusion_lightning import LastCheckpoint, UNet, WholeCheckpointIO, cli
from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.training.checkpoint_file import load_checkpoint

pytestmark = pytest.mark.cuda

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


class Crash(Exception):
    pass


class CrashAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Crash


class Record(Callback):
    """What each batch and each step was, kept on the device."""

    def __init__(self) -> None:
        self.batches, self.losses, self.states = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append([part.clone() for part in batch])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach().clone())
        optimizer = trainer.optimizers[0]
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        tensors = [*pl_module.network.parameters(), *pl_module.ema.shadow_params, *state]
        self.states.append([tensor.detach().clone() for tensor in tensors])


class Spoil(Callback):
    """Makes a gradient not a number in some steps, without a look at it."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps:
            pl_module.network.conv_out.bias.grad.fill_(torch.nan)


class WaitsForNothing(Callback):
    """On CUDA, whatever makes the host wait raises: from the third batch on until the last but one has ended."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2 and pl_module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == trainer.num_training_batches - 2 and pl_module.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, pl_module, exception):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


class Tiles(ImageDataModule):
    """Images of which every one is another, some of them mirrored."""

    shape = (1, 8, 8)
    num_classes = 2
    flip = True

    def load_images(self):
        images = torch.arange(64 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(64, 1, 8, 8)
        return (TensorImages(images, torch.arange(64) % 2),) * 2


@pytest.fixture
def make_trainer(make_trainer, accelerator):
    return partial(make_trainer, accelerator=accelerator, devices=1)


@pytest.fixture
def optimizer(device):
    """Fused: on CUDA by itself."""
    return None if device.type == "cuda" else partial(torch.optim.AdamW, lr=2e-4, fused=True)


def test_a_crash_between_two_steps_changes_no_bit(make_module, make_trainer, make_data, device, tmp_path):
    network = {"channels": (16,), "num_res_blocks": 1, "embed_dim": 8, "num_heads": 2, "patch_size": 2, "dropout": 0.1}
    checkpoints = []
    try:
        for name, crash in (("whole", None), ("broken", 5)):
            for resume in (False, True)[: 1 if crash is None else 2]:
                saves = LastCheckpoint(every_n_train_steps=2)
                saves.dirpath = str(tmp_path / name)
                callbacks = [saves, *([CrashAt(crash)] if crash and not resume else [])]
                trainer = make_trainer(
                    deterministic=True, max_epochs=2, limit_train_batches=4, enable_checkpointing=True,
                    callbacks=callbacks, plugins=[WholeCheckpointIO()],
                )  # fmt: skip
                torch.manual_seed(0)
                module = make_module(network=UNet(**network))
                last = tmp_path / name / "last.ckpt"
                try:
                    trainer.fit(module, datamodule=make_data(), ckpt_path=last if resume else None)
                except Crash:
                    assert last.exists()
                    continue
                assert trainer.global_step == 8
                checkpoints.append(load_checkpoint(last))
    finally:
        torch.use_deterministic_algorithms(False)
    whole, broken = ([*c["state_dict"].values(), *c["ema"]["shadow_params"]] for c in checkpoints)
    assert all(torch.equal(one, other) for one, other in zip(whole, broken, strict=True))
    whole, broken = (c["optimizer_states"][0]["state"] for c in checkpoints)
    assert all(torch.equal(whole[n][k], broken[n][k]) for n in whole for k in ("exp_avg", "exp_avg_sq", "step"))


@pytest.mark.parametrize("on_device", [True, False])
def test_ordinary_steps_wait_for_nothing(make_module, make_trainer, make_data, optimizer, device, on_device):
    trainer = make_trainer(
        limit_train_batches=10, log_every_n_steps=1000, limit_val_batches=0, callbacks=[WaitsForNothing()]
    )
    module = make_module(optimizer=optimizer)
    trainer.fit(module, datamodule=make_data(on_device=on_device))
    assert trainer.global_step == 10
    assert trainer.optimizers[0].param_groups[0]["fused"]


def test_a_bad_step_changes_nothing_is_counted_and_nobody_waits(
    make_module, make_trainer, make_data, optimizer, device
):
    record, bad = Record(), (2, 5, 6)
    trainer = make_trainer(
        limit_train_batches=10, log_every_n_steps=1000, limit_val_batches=0,
        callbacks=[Spoil(*bad), record, WaitsForNothing()],
    )  # fmt: skip
    module = make_module(optimizer=optimizer)
    trainer.fit(module, datamodule=make_data())
    for step in range(1, 10):
        changed = [not torch.equal(a, b) for a, b in zip(record.states[step - 1], record.states[step], strict=True)]
        assert not any(changed) if step in bad else any(changed)
    assert module.skipped_steps == len(bad)
    assert module.ema.num_updates == 10 - len(bad)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {10 - len(bad)}


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lower_precision(precision, make_module, make_trainer, make_data, device, record_property):
    record = Record()
    trainer = make_trainer(limit_train_batches=8, precision=precision, callbacks=[record])
    module = make_module()
    trainer.fit(module, datamodule=make_data())
    losses = torch.stack(record.losses).float()
    # in 16-mixed a step may be left out by which the loss's scale is found; its loss is finite all the same
    assert losses.isfinite().all()
    assert module.ema.num_updates == 8 - module.skipped_steps >= 4
    record_property("losses", json.dumps(losses.tolist()))


def test_compiled_is_eager(make_module, make_trainer, make_data, device, close):
    if device.type == "cpu":
        pytest.skip("a compiler for CPUs takes minutes; tests/training/test_compilation.py has them")
    seen = []
    for compile in (False, True):
        torch.manual_seed(0)
        record = Record()
        # whose steps are as small as the gradients: Adam's make one of what is nothing but rounding
        module = make_module(compile=compile, optimizer=partial(torch.optim.SGD, lr=0.01))
        trainer = make_trainer(callbacks=[record])
        trainer.fit(module, datamodule=make_data())
        seen.append([torch.stack(record.losses), *(p.detach() for p in module.to(device).network.parameters())])
        assert (module.network._compiled_call_impl is not None) == compile
    close(seen[1], [value.cpu() for value in seen[0]], within=2e-4)


def test_data_kept_on_the_device_are_the_same_batches(make_module, make_trainer, device):
    seen = []
    for on_device in (True, False):
        record = Record()
        data = Tiles(batch_size=8, on_device=on_device)
        make_trainer(max_epochs=2, callbacks=[record]).fit(make_module(), datamodule=data)
        seen.append([part for batch in record.batches for part in batch])
    assert all(part.device.type == device.type for parts in seen for part in parts)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_dry_run(accelerator, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(
        ["fit", "--config", QUICKSTART, "--dry_run", f"--trainer.accelerator={accelerator}", "--trainer.devices=1",
         "--model.network.init_args.channels=[8]", "--data.init_args.batch_size=16"]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "examples/s" in told
    assert "training step" in told
    assert list(tmp_path.iterdir()) == []
