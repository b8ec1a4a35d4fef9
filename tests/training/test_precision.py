"""`trainer.precision: auto`: the plugin, the Trainer that asks for it, and the command."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from diffusion_lightning import AutoPrecision, Trainer, UNet, WholeCheckpointIO, cli
from diffusion_lightning.training import bf16

CONFIGS = Path(__file__).parents[2] / "configs"

TINY = """
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 1
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


def make(**kwargs: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **kwargs)


# ---- in Python


def test_auto_is_the_plugin_beside_the_others():
    io = WholeCheckpointIO()
    for plugins in (None, io, [io]):
        trainer = make(precision="auto", plugins=plugins)
        assert isinstance(trainer.precision_plugin, AutoPrecision)
        assert (trainer.strategy.checkpoint_io is io) is (plugins is not None)


def test_all_else_is_lightnings():
    assert type(make().precision_plugin) is Precision
    assert type(make(precision="bf16-mixed").precision_plugin) is MixedPrecision
    plugin = AutoPrecision()
    assert make(plugins=[plugin]).precision_plugin is plugin
    assert make(plugins=[plugin], precision="auto").precision_plugin is plugin
    with pytest.raises(ValueError, match="Precision 'abc' is invalid"):
        make(precision="abc")


@pytest.mark.parametrize(("has_units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_where_there_are_units(make_module, make_data, monkeypatch, caplog, has_units, dtype):
    monkeypatch.setattr(bf16, "has_bf16_units", lambda kind: has_units)
    module, seen = make_module(), set()
    module.network.conv_in.register_forward_hook(
        lambda layer, args, output: None if output.is_meta else seen.add(output.dtype)
    )
    trainer = make(precision="auto", max_steps=2, limit_val_batches=0, enable_progress_bar=False)
    with caplog.at_level("INFO"):
        trainer.fit(module, datamodule=make_data())
    assert seen == {dtype}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    said = [record.getMessage() for record in caplog.records if "precision:" in record.getMessage()]
    assert said == [f"precision: {'bf16-mixed' if has_units else '32-true'} on cpu"]


# ---- the command


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs a tiny fit; gives the trainer's settings as they are saved."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> dict[str, Any]:
        cli.main(["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", "tiny.yaml", *args])
        newest = max(tmp_path.glob("runs/quickstart/version_*"), key=lambda folder: int(folder.name[8:]))
        return yaml.safe_load((newest / "config.yaml").read_text())["trainer"]

    return run


def test_the_recipes_choice_is_saved_resumed_and_replaced(fit, caplog, tmp_path):
    with caplog.at_level("INFO"):
        saved = fit()
    assert (saved["precision"], saved["plugins"]) == ("auto", None)
    assert "precision: " in caplog.text
    resume = ("--ckpt_path", "last", "--trainer.max_epochs")
    cli.main(["fit", "--config", "runs/quickstart/version_0/config.yaml", *resume, "2"])

    caplog.clear()
    (tmp_path / "single.yaml").write_text("trainer: {precision: 32-true}")
    with caplog.at_level("INFO"):
        assert fit("--config", "single.yaml")["precision"] == "32-true"
        assert fit("--trainer.precision", "32-true")["precision"] == "32-true"
    assert "precision: " not in caplog.text
    with caplog.at_level("INFO"):
        assert fit("--config", "single.yaml", "--trainer.precision", "auto")["precision"] == "auto"
    assert "precision: " in caplog.text


def test_a_config_with_the_plugin_still_works(fit, caplog, tmp_path):
    old = {"trainer": {"precision": None, "plugins": [{"class_path": "diffusion_lightning.AutoPrecision"}]}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    with caplog.at_level("INFO"):
        saved = fit("--config", "old.yaml")
        assert saved["plugins"][0]["class_path"] == "diffusion_lightning.AutoPrecision"
        fit("--config", "old.yaml", "--trainer.precision", "auto")
    assert caplog.text.count("precision: ") == 2


@pytest.mark.parametrize(("asked", "has_units", "uses_bf16"), [("auto", 1, 1), ("auto", 0, 0), ("32-true", 1, 0)])
def test_sample_draws_at_the_precision_asked_for(fit, monkeypatch, asked, has_units, uses_bf16):
    fit()
    forward, seen = UNet.forward, set()

    def watched(self, *args, **kwargs):
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", watched)
    monkeypatch.setattr(bf16, "has_bf16_units", lambda kind: bool(has_units))
    checkpoint = "runs/quickstart/version_0/checkpoints/last.ckpt"
    cli.main(["sample", "--ckpt_path", checkpoint, "--num", "2", "--quiet", "--device", "cpu", "--precision", asked])
    assert seen == {(bool(uses_bf16), torch.bfloat16)}
    seen.clear()
    ode = ("--sampler", "ProbabilityFlowODE", "--sampler.method", "heun2", "--sampler.steps", "2")
    cli.main(["sample", "--ckpt_path", checkpoint, "--num", "2", "--quiet", "--device", "cpu", *ode])
    assert (False, torch.bfloat16) in seen  # its tolerances are finer than bf16


def test_a_bad_precision_is_one_line_that_names_what_is_allowed(fit, capsys):
    with pytest.raises(SystemExit):
        fit("--trainer.precision", "bf17")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning: error: ")]
    assert "option \"trainer.precision\": Expected one of 'auto'" in line
    assert all(name in line for name in ("'bf16-mixed'", "'32-true'", "Got value: bf17"))


def test_help_shows_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert '--trainer.precision PRECISION ``"auto"``, bf16-mixed where the device' in said


def test_where_torch_cannot_tell_of_bf16_units_it_is_float32_and_a_line_says_so(monkeypatch):
    """As under torch 2.6."""
    told = []
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(bf16, "inform", told.append)
    bf16._say_unknown.cache_clear()
    assert not bf16.has_bf16_units("cpu")
    assert not bf16.has_bf16_units("cpu")
    bf16._say_unknown.cache_clear()
    assert len(told) == 1
    assert "cannot tell whether this CPU has bf16 units" in told[0]
