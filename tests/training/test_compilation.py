"""Compiled and uncompiled runs: the same checkpoints, samples and likelihoods, and no failure without a compiler."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch._dynamo.testing import CompileCounter

from diffusion_lightning import MLP, Points, ScoreModule, cli, compilation, log_likelihood

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")

TINY = {
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "logger": None,
        "callbacks": None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {
        "network": {"init_args": {"channels": [4], "embed_dim": 8, "middle_attention": False, "patch_size": 4}},
        "sampler": {"init_args": {"steps": 2}},
    },
    "data": {"init_args": {"batch_size": 4}},
}


@pytest.fixture
def compiler(monkeypatch):
    """In place of the real compiler one that counts what it is given, and runs it as it is."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


@pytest.fixture
def fit(make_trainer, make_data):
    def run(module: ScoreModule, ckpt_path: Any = None, **kwargs: Any) -> Any:
        trainer = make_trainer(**kwargs)
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


def samples(module: ScoreModule, num: int = 2, **kwargs: Any) -> torch.Tensor:
    return module.sample(num=num, generator=torch.Generator().manual_seed(0), **kwargs)


def is_compiled(module: ScoreModule) -> bool:
    return module.network._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("device", "capability", "wanted"),
    [("cpu", None, False), ("cuda", (6, 1), False), ("cuda", (7, 0), True), ("cuda", (9, 0), True)],
)
def test_it_pays_on_gpus_that_triton_knows(monkeypatch, device, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compilation.pays(torch.device(device)) is wanted


@pytest.mark.parametrize(
    ("choice", "pays", "wanted"),
    [(True, False, True), (False, True, False), ("auto", True, True), ("auto", False, False)],
)
def test_the_choice_is_made_when_the_run_starts(make_module, fit, compiler, monkeypatch, caplog, choice, pays, wanted):
    monkeypatch.setattr(compilation, "pays", lambda device: pays)
    module = make_module(compile=choice)
    assert not is_compiled(module)
    with caplog.at_level("INFO"):
        fit(module)
    assert is_compiled(module) is wanted
    assert (compiler.frame_count > 0) is wanted
    said = [record.getMessage() for record in caplog.records if "compile:" in record.getMessage()]
    assert said == ([f"compile: {'yes' if wanted else 'no'} on cpu"] if choice == "auto" else [])


@pytest.mark.parametrize("how", ["fit", "validate", "sample"])
def test_whatever_runs_first_compiles(make_module, make_trainer, make_data, compiler, how):
    module = make_module(compile=True, shape=(1, 28, 28))
    if how == "sample":
        samples(module)
    else:
        getattr(make_trainer(), how)(module, datamodule=make_data())
    assert is_compiled(module)
    assert compiler.frame_count > 0


@pytest.mark.parametrize("choice", ["yes", 2, None])
def test_another_choice_is_refused(make_module, choice):
    with pytest.raises(ValueError, match=r"must be true, false or auto") as caught:
        make_module(compile=choice)
    assert str(caught.value) == f"compile={choice!r}: must be true, false or auto"


@pytest.mark.parametrize("first", [False, True])
def test_each_goes_on_from_the_others_checkpoint(make_module, fit, compiler, tmp_path, first):
    fit(make_module(compile=first)).save_checkpoint(tmp_path / "a.ckpt")
    results = []
    for second in (first, not first):
        module = make_module(compile=second)
        trainer = fit(module, tmp_path / "a.ckpt", max_epochs=2)
        assert trainer.global_step == 6
        assert is_compiled(module) is second
        results.append(module.state_dict() | {"sample": samples(module)})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], msg=name)


def test_a_checkpoint_is_loaded_uncompiled_unless_told(make_module, fit, compiler, tmp_path):
    module = make_module(compile=True)
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    again = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt", compile=True)
    torch.testing.assert_close(samples(loaded), samples(module))
    assert torch.equal(samples(again), samples(module))
    assert not is_compiled(loaded)
    assert is_compiled(again)


class Sampling(Callback):
    """Draws samples in batches of sizes of their own, in the midst of training and in validation."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        samples(pl_module, 7, batch_size=3 + batch_idx % 3)

    on_validation_batch_end = on_train_batch_end


def test_a_run_compiles_a_few_times_and_then_no_more(make_module, make_trainer, make_data, compiler):
    counts = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            counts.append(compiler.frame_count)

    module = make_module(compile=True)
    trainer = make_trainer(max_epochs=5, callbacks=[Sampling(), Count()])
    trainer.fit(module, datamodule=make_data(batch_size=6))
    # of another name before torch 2.7
    assert 0 < counts[-1] <= getattr(torch._dynamo.config, "recompile_limit", 8)
    assert counts[2:] == [counts[2]] * 3
    # the compiled code follows the weights, which the EMA changes in place
    with torch.no_grad():
        for average in module.ema.shadow_params:
            average.add_(0.3)
    moved = samples(module)
    assert compiler.frame_count == counts[-1]
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(moved, samples(module))


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_the_likelihood_by_a_compiled_network(make_module, compiler, divergence):
    module = make_module(network=MLP(hidden=(8,)), shape=(2,), compile=True)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def nats() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return log_likelihood(module.denoiser, x, divergence=divergence, generator=generator, rtol=1e-3, atol=1e-3)[0]

    before = nats()
    samples(module)
    assert is_compiled(module)
    count = compiler.frame_count
    assert torch.equal(nats(), before)
    assert compiler.frame_count == count


def test_the_real_compiler(make_trainer, make_module):
    """Two short runs on points, a sample and the exact likelihood, which goes backward more than once."""
    torch._dynamo.reset()
    runs = []
    for choice in (False, True):
        torch.manual_seed(0)
        module = make_module(network=MLP(hidden=(8,)), compile=choice)
        make_trainer().fit(module, datamodule=Points(num_points=24, num_held_out=8, batch_size=8))
        assert is_compiled(module) is choice
        nats = log_likelihood(module.denoiser, torch.ones(2, 2), divergence="exact", rtol=1e-3, atol=1e-3)[0]
        runs.append([*module.parameters(), samples(module), nats])
    for plain, compiled in zip(*runs, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


def test_without_a_compiler_the_run_warns_once_and_ends(tmp_path, environment):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "diffusion_lightning", "fit", "--config", QUICKSTART, "--config", "tiny.yaml"),
            *("--model.compile", "true"),
        ],
        cwd=tmp_path,
        env=environment
        | {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": _path()}
        | {"PRELOADED": "0"},  # torch reads CXX when it is imported
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Done after 2 steps" in done.stdout
    warned = [line for line in done.stderr.splitlines() if "compile: no on cpu" in line]
    assert len(warned) == 1, done.stderr
    assert "it does not work here, and the network runs uncompiled: " in warned[0]
    assert "Traceback" not in done.stderr


def _path() -> str:
    return os.pathsep.join([str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize("choice", ["true", "auto"])
def test_sample_command(make_module, fit, compiler, tmp_path, monkeypatch, capsys, choice):
    monkeypatch.setattr(compilation, "pays", lambda device: True)
    monkeypatch.chdir(tmp_path)
    fit(make_module()).save_checkpoint("a.ckpt")
    command = ["sample", "--ckpt_path", "a.ckpt", "--num", "2", "--quiet", "--output"]
    cli.main([*command, "plain.npz"])
    assert compiler.frame_count == 0
    cli.main([*command, "compiled.npz", "--compile", choice])
    assert compiler.frame_count > 0
    with pytest.raises(SystemExit):
        cli.main([*command, "x.npz", "--compile", "maybe"])
    assert "option \"compile\": Expected a bool or Expected one of 'auto'. Got value: maybe" in capsys.readouterr().err
