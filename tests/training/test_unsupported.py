"""Lightning's callbacks and precisions on a ScoreModule: they do what they say, or are refused in a line."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, HalfPrecision, TransformerEnginePrecision
from lightning.pytorch.tuner import Tuner

from diffusion_lightning import RunLogger, ScoreModule, cli
from diffusion_lightning.training.unsupported import check_trainer

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")

TINY = """
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  logger: null
  callbacks: null
  enable_progress_bar: false
  enable_model_summary: false
model:
  network: {init_args: {channels: [4], embed_dim: 8, middle_attention: false, patch_size: 4}}
  sampler: {init_args: {steps: 2}}
data: {init_args: {batch_size: 4}}
"""

REFUSED = {
    "LearningRateFinder": (callbacks.LearningRateFinder, "try rates with model.optimizer.lr"),
    "StochasticWeightAveraging": (lambda: callbacks.StochasticWeightAveraging(0.01), "give model.ema_decay"),
    "WeightAveraging": (callbacks.WeightAveraging, "give model.ema_decay"),
    "EMAWeightAveraging": (callbacks.EMAWeightAveraging, "give model.ema_decay"),
    "ModelPruning": (lambda: callbacks.ModelPruning("l1_unstructured"), "does not prune the averaged weights"),
    "BackboneFinetuning": (callbacks.BackboneFinetuning, "finds no backbone: leave it out"),
}


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Runs a tiny `lightning fit` in this process; gives its one line where it fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)

    def run(*args: str) -> str:
        with suppress(SystemExit):
            cli.main(["fit", "--config", QUICKSTART, "--config", "tiny.yaml", "--run_name", "run", *args])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning: error: ")]
        return "\n".join(errors)

    return run


# ---- callbacks


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_without_effect_is_refused_in_python(make_module, make_data, make_trainer, tmp_path, name):
    make, words = REFUSED[name]
    trainer = make_trainer(callbacks=[make()], logger=RunLogger(tmp_path, "run"))
    with pytest.raises(ValueError, match=f"^trainer.callbacks: {name} .*{words}"):
        trainer.fit(make_module(), datamodule=make_data())
    assert list(tmp_path.iterdir()) == []


def test_tuning_the_rate_is_refused_too(make_module, make_data, make_trainer):
    with pytest.raises(ValueError, match="LearningRateFinder finds no rate to set"):
        Tuner(make_trainer()).lr_find(make_module(), datamodule=make_data())


def test_the_command_refuses_it_in_a_line_before_anything_is_made(fit, tmp_path):
    assert fit("--trainer.callbacks", "LearningRateFinder") == (
        "lightning: error: trainer.callbacks: LearningRateFinder finds no rate to set, which is the optimizer's here: "
        "leave it out, and try rates with model.optimizer.lr"
    )
    assert "ModelPruning" in fit(
        "--trainer.callbacks", "ModelPruning", "--trainer.callbacks.pruning_fn", "l1_unstructured"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


def test_all_other_callbacks_work_and_change_no_weight(make_module, make_data, make_trainer, tmp_path):
    def trained(*more: callbacks.Callback) -> ScoreModule:
        module = make_module()
        trainer = make_trainer(
            callbacks=[*more], max_epochs=2, logger=RunLogger(tmp_path, "run"), enable_checkpointing=True
        )
        trainer.fit(module, datamodule=make_data())
        assert trainer.global_step == 6
        return module

    plain = trained()
    module = trained(
        callbacks.BatchSizeFinder(max_trials=1, steps_per_trial=1, init_val=8),  # the first size is that of the other
        callbacks.EarlyStopping("val/loss"),
        callbacks.Timer("00:00:10:00"),
        callbacks.LearningRateMonitor(),
        callbacks.DeviceStatsMonitor(),
        callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0])),
        callbacks.OnExceptionCheckpoint(tmp_path),
        callbacks.RichModelSummary(),
    )
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_are_accumulated_as_scheduled(make_module, make_data, make_trainer):
    trainer = make_trainer(callbacks=[callbacks.GradientAccumulationScheduler({1: 3})], max_epochs=2)
    trainer.fit(make_module(), datamodule=make_data())
    assert trainer.global_step == 3 + 1


def test_a_callback_whose_default_is_of_an_enumeration_is_written_to_the_config(fit, tmp_path):
    assert fit("--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "00:00:10:00") == ""
    config = yaml.safe_load((tmp_path / "runs" / "run" / "version_0" / "config.yaml").read_text())
    assert config["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"


# ---- precision


@pytest.mark.parametrize("name", ["bf16-true", "16-true"])
def test_weights_of_16_bits_are_refused_naming_the_mixed_ones(
    make_module, make_data, make_trainer, fit, tmp_path, name
):
    mixed = name.replace("true", "mixed")
    expected = f"^trainer.precision='{name}': .* give '{mixed}', which computes in 16 bits and keeps the weights$"
    for settings in ({"precision": name}, {"plugins": [HalfPrecision(name)]}):
        with pytest.raises(ValueError, match=expected):
            make_trainer(**settings).fit(make_module(), datamodule=make_data())
    with pytest.raises(ValueError, match=expected):
        make_trainer(precision=name).validate(make_module(), datamodule=make_data())
    assert f"lightning: error: trainer.precision='{name}': weights of 16 bits" in fit("--trainer.precision", name)
    half = ("--trainer.plugins", "lightning.pytorch.plugins.HalfPrecision", "--trainer.plugins.precision", name)
    assert f"give '{mixed}'" in fit("--trainer.precision", "null", *half)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


@pytest.mark.parametrize("cls", [BitsandbytesPrecision, TransformerEnginePrecision])
def test_layers_of_other_libraries_are_refused(cls):
    plugin = cls.__new__(cls)  # whose library is not here
    plugin.precision = "transformer-engine"
    trainer = SimpleNamespace(precision_plugin=plugin, callbacks=[])
    with pytest.raises(ValueError, match=f"^trainer.precision: {cls.__name__} puts other layers into the network"):
        check_trainer(trainer)


def test_weights_of_64_bits_are_trained_and_averaged(make_module, make_data, make_trainer):
    module = make_module()
    make_trainer(precision="64-true").fit(module, datamodule=make_data())
    assert {p.dtype for p in module.network.parameters()} == {torch.float64}
    assert module.ema.num_updates == 3
    assert module.sample(num=2).isfinite().all()
