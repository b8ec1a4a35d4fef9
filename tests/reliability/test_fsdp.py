"""FSDP2 on two real processes: the same run as DDP's, and checkpoints that go between the two."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import Muon
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh

from diffusion_lightning import ScoreModule, UNet
from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.sharding import (
    gathered,
    is_sharded,
    number_as_in,
    own_rows,
    part_of,
    shard,
    warn_of_split_matrices,
    whole_of,
)

CONFIGS = Path(__file__).parent.parent.parent / "configs"

# in FID and prediction one process draws more batches than the other, and the strips are drawn by one alone
TINY = """
trainer:
  accelerator: cpu
  devices: 2
  max_epochs: 1
  limit_train_batches: 3
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  logger: null
  precision: 32-true
  callbacks:
    - class_path: diffusion_lightning.SampleGrid
      init_args: {num_samples: 5}
    - class_path: diffusion_lightning.FIDCallback
      init_args: {num_samples: 5, batch_size: 2, feature: mnist}
    - class_path: diffusion_lightning.DenoisingProcess
      init_args: {num_samples: 2}
model:
  clip_norm: 0.01
  network: {init_args: {channels: [8, 8], embed_dim: 8}}
  sampler: {init_args: {steps: 2}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data: {init_args: {batch_size: 2, num_predict: 5}}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Any:
    """Runs the command with one of the overlays; gives the run's folder."""
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "tiny.yaml").write_text(TINY)
    search = os.pathsep.join((str(Path(__file__).parent), environment.get("PYTHONPATH", "")))

    def run(subcommand: str, overlay: str, name: str, *args: str) -> Path:
        files = [CONFIGS / "quickstart.yaml", CONFIGS / "overlays" / f"{overlay}.yaml", "tiny.yaml"]
        config = [part for file in files for part in ("--config", str(file))]
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_lightning", subcommand, *config, "--run_name", name, *args],
            cwd=folder,
            env={**environment, "PYTHONPATH": search},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,  # processes that wait for each other would do so for ever
        )
        assert done.returncode == 0, done.stderr
        return folder / "runs" / name / "version_0"

    return run


@pytest.fixture(scope="module")
def fitted(command: Any) -> dict[str, Path]:
    return {overlay: command("fit", overlay, overlay) for overlay in ("ddp", "fsdp")}


@pytest.fixture(scope="module")
def resumed(command: Any, fitted: dict[str, Path]) -> dict[str, Path]:
    """One more epoch, each from the other's checkpoint, in a new run."""
    return {
        f"{other} to {overlay}": command(
            *("fit", overlay, f"from_{other}", "--trainer.max_epochs", "2", "--trainer.callbacks", "null"),
            *("--ckpt_path", str(fitted[other] / "checkpoints" / "last.ckpt")),
        )
        for overlay, other in (("ddp", "fsdp"), ("fsdp", "ddp"))
    }


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_state(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Weights, EMA and moments of the optimizer agree up to the order of sums."""
    assert (first["global_step"], first["ema"]["num_updates"]) == (second["global_step"], second["ema"]["num_updates"])
    torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=1e-6)
    torch.testing.assert_close(first["ema"]["shadow_params"], second["ema"]["shadow_params"], rtol=0, atol=1e-6)
    torch.testing.assert_close(first["optimizer_states"], second["optimizer_states"], rtol=1e-4, atol=1e-6)


def test_it_is_the_run_that_ddp_makes(fitted):
    first, second = (last(fitted[overlay]) for overlay in ("ddp", "fsdp"))
    assert first.keys() == second.keys()
    assert_same_state(first, second)
    start = ScoreModule.load_from_checkpoint(fitted["fsdp"] / "checkpoints" / "last.ckpt").network
    assert any(
        (p - a).abs().max() > 1e-4 for p, a in zip(trainable(start), second["ema"]["shadow_params"], strict=True)
    )


def test_the_measurements_agree_with_ddps(fitted):
    rows = []
    for overlay in ("ddp", "fsdp"):
        with open(fitted[overlay] / "metrics.csv", newline="") as file:
            found = [(name, float(value)) for row in csv.DictReader(file) for name, value in row.items() if value]
        rows.append([(name, value) for name, value in found if not name.startswith(("perf/", "time/"))])
        assert (fitted[overlay] / "denoising" / "epoch=0000.png").is_file()
    assert [name for name, _ in rows[0]] == [name for name, _ in rows[1]]
    assert {"fid/mnist@5", "val/loss", "train/loss_epoch"} <= {name for name, _ in rows[0]}
    assert [value for _, value in rows[1]] == pytest.approx([value for _, value in rows[0]], rel=1e-3)


def test_each_block_is_compiled_by_itself_and_none_is_given_up(command, fitted):
    callbacks = "[{class_path: misfortunes.CountGraphs}]"
    run = command(
        "fit",
        "fsdp",
        "compiled",
        "--model.compile=true",
        "--trainer.limit_val_batches=0",
        f"--trainer.callbacks={callbacks}",
    )
    assert_same_state(last(run), last(fitted["fsdp"]))
    for rank in (0, 1):
        found = json.loads((run.parents[2] / f"graphs.rank{rank}.json").read_text())
        assert (found["blocks"], found["breaks"], found["given up"]) == (10, 0, 0)
        assert 0 < found["graphs"] <= found["blocks"]  # equal blocks share one


def test_an_optimizer_that_needs_whole_matrices_is_told_of():
    weight = nn.Parameter(torch.zeros(2, 2))
    for optimizer, expected in ((Muon([weight]), 1), (torch.optim.AdamW([weight]), 0)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            warn_of_split_matrices(optimizer)
        assert [("Muon" in str(each.message), "AdamW" in str(each.message)) for each in told] == [
            (True, True)
        ] * expected


def test_either_goes_on_from_the_others_checkpoint(resumed):
    first, second = (last(run) for run in resumed.values())
    assert first["global_step"] == 6
    assert_same_state(first, second)


def test_prediction_and_one_device_sample_from_it(command, fitted):
    folder = command("predict", "fsdp", "fsdp", "--ckpt_path", "last") / "predictions"
    assert len(list(folder.iterdir())) == 5
    module = ScoreModule.load_from_checkpoint(fitted["fsdp"] / "checkpoints" / "last.ckpt")
    assert not is_sharded(module.network)
    assert module.sample(num=2).isfinite().all()


# ---- the parts, on a mesh of one process


@pytest.fixture
def mesh(tmp_path: Path) -> Any:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "parts"))
    destroy_process_group()


def small() -> UNet:
    torch.manual_seed(0)
    return UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, time_embedding="fourier")


def trainable(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def test_a_network_is_whole_where_it_is_gathered(mesh):
    network, x, t = small(), torch.randn(2, 1, 8, 8), torch.rand(2)
    nn.init.normal_(network.conv_out.weight)
    expected, names = network(x, t), list(network.state_dict())
    shard(network, mesh)
    assert is_sharded(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(x, t), expected)
    assert is_sharded(network)
    with gathered(network):
        with gathered(network), torch.no_grad():
            assert torch.equal(network(x, t), expected)
        assert not is_sharded(network)
    assert is_sharded(network)


def test_conditions_reach_the_blocks_of_a_sharded_network(mesh):
    torch.manual_seed(0)
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, condition_dim=2, condition_channels=1, context_dim=3)
    network.standardize(torch.ones(2), torch.full((2,), 3.0))
    for parameter in trainable(network):
        nn.init.normal_(parameter, std=0.3)
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    told = {"vector": torch.randn(2, 2), "picture": torch.randn(2, 1, 4, 4), "tokens": torch.randn(2, 3, 3)}
    for value in told.values():
        value[1] = torch.nan
    (expected := network(x, t, **told)).square().sum().backward()
    gradients = [parameter.grad for parameter in trainable(network)]
    network.zero_grad()
    shard(network, mesh)
    (result := network(x, t, **told)).square().sum().backward()
    assert torch.equal(result, expected)
    torch.testing.assert_close([whole_of(p.grad) for p in trainable(network)], gradients)


def test_the_average_is_split_as_the_weights_are(mesh):
    network = small()
    ema = EMA(trainable(network), 0.9)
    before = [average.clone() for average in ema.shadow_params]
    shard(network, mesh)
    ema.take_over(trainable(network))
    assert all(type(a) is type(p.data) for a, p in zip(ema.shadow_params, trainable(network), strict=True))
    with torch.no_grad():
        for rows in own_rows(trainable(network)):
            rows.add_(11)
    ema.update()  # d = 2/11, so 9 of the 11 are in the average
    saved = ema.state_dict()["shadow_params"]
    torch.testing.assert_close(saved, [average + 9 for average in before])
    with ema.average_parameters(), gathered(network):
        assert all(torch.equal(p, average) for p, average in zip(trainable(network), saved, strict=True))
    torch.testing.assert_close([whole_of(p.data) for p in trainable(network)], [average + 11 for average in before])
    ema.load_state_dict({**ema.state_dict(), "shadow_params": before, "num_updates": 7})
    assert ema.num_updates == 7
    assert all(torch.equal(whole_of(a), b) for a, b in zip(ema.shadow_params, before, strict=True))


def test_what_is_not_sharded_stays_as_it_is():
    tensor = torch.zeros(2)
    assert part_of(tensor, torch.ones(2)) is tensor
    assert whole_of(tensor) is tensor
    network = small()
    with gathered(network):
        assert not is_sharded(network)


def test_an_optimizer_numbers_its_parameters_as_the_module_does():
    module = nn.ParameterList([nn.Parameter(torch.ones(1), requires_grad=n != 1) for n in range(4)])
    optimizer = torch.optim.Adam(trainable(module))
    sum(trainable(module)).backward()
    optimizer.step()
    state = optimizer.state_dict()
    number_as_in(module, state)
    assert list(state["state"]) == state["param_groups"][0]["params"] == [0, 2, 3]
    assert list(optimizer.state_dict()["state"]) == [0, 1, 2]
