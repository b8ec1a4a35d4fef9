"""The sweep files: what W&B's own agent makes of them is a command that trains, and logs where the agent looks."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config
from wandb_records import wandb_records

from diffusion_lightning.commands import cli

CONFIGS = Path(__file__).parent.parent / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))

TINY = """
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: null
model:
  network: {init_args: {channels: [8], middle_attention: false, embed_dim: 8}}
data: {init_args: {batch_size: 8}}
"""


def choose(parameters: dict[str, Any]) -> dict[str, Any]:
    """A value of each parameter's range, as W&B's server would send them."""
    chosen = {}
    for name, spec in parameters.items():
        assert spec.keys() in ({"values"}, {"value"}, {"distribution", "min", "max"})
        if "min" in spec:
            assert spec["distribution"] in ("uniform", "log_uniform_values")
            assert spec["min"] < spec["max"]
        chosen[name] = spec["values"][-1] if "values" in spec else spec.get("value", spec.get("max"))
    return chosen


@pytest.fixture
def agents_command(tmp_path, monkeypatch):
    """What W&B's agent starts for these values: the command and its environment."""

    def make(sweep: dict[str, Any], values: dict[str, Any]) -> Any:
        started = []
        monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **kwargs: started.append(kwargs) or SimpleNamespace())
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
        monkeypatch.chdir(tmp_path)
        agent = SimpleNamespace(
            _in_jupyter=False, _function=None, _forward_signals=False, _run_processes={}, _last_report_time=None,
            _sweep_command=list(sweep["command"]),
        )  # fmt: skip
        arguments = {name: {"value": value} for name, value in values.items()}
        order = {"type": "run", "run_id": "run45678", "program": sweep["program"], "args": arguments}
        wandb_agent.Agent._command_run(agent, order)
        (process,) = started
        return process["command"], process["env"]

    yield make
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent has set for its children
        os.environ.pop(name, None)


def test_they_are_all_there():
    assert {file.stem for file in SWEEPS} == {"quickstart"}


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_command_sets_what_was_chosen_and_nothing_else(agents_command, capsys, monkeypatch, file):
    sweep = load_sweep_config(str(file))
    values = choose(sweep["parameters"])
    command, _ = agents_command(sweep, values)
    assert command[0] == "lightning"
    monkeypatch.chdir(CONFIGS.parent)  # as the file's comment says

    def resolved(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as done:
            cli.main([*args, "--print_config"])
        output = capsys.readouterr()
        assert done.value.code in (0, None), output.err
        return yaml.safe_load(output.out)

    plain, config = resolved(*command[1:4]), resolved(*command[1:])
    for name, value in values.items():
        place, there = plain, config
        *path, last = name.split(".")
        for key in path:
            place, there = place[key], there[key]
        assert there[last] == value
        assert place[last] != value
        place[last] = value
    assert config == plain


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_metric_is_one_that_the_recipe_logs(file):
    sweep = yaml.safe_load(file.read_text())
    recipe = yaml.safe_load((CONFIGS.parent / sweep["command"][3]).read_text())
    (fid,) = (c for c in recipe["trainer"]["callbacks"] if c["class_path"].endswith("FIDCallback"))
    assert recipe["data"]["class_path"].endswith("MNIST")
    assert sweep["metric"] == {"name": f"fid/digits@{fid['init_args']['num_samples']}", "goal": "minimize"}
    assert sweep["method"] in ("bayes", "random", "grid")


def test_a_run_of_an_agent_trains_and_logs_as_the_agents(agents_command, environment, tmp_path):
    sweep = load_sweep_config(str(CONFIGS / "sweeps" / "quickstart.yaml"))
    values = choose(sweep["parameters"])
    (tmp_path / "tiny.yaml").write_text(TINY)
    command, env = agents_command(sweep, {**values, "config": "tiny.yaml", "run_name": "of_a_sweep"})
    command[command.index("configs/quickstart.yaml")] = str(CONFIGS / "quickstart.yaml")
    given = {name: value for name, value in env.items() if name.startswith("WANDB_")}
    assert given.keys() >= {"WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"}
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lightning", *command[1:]],
        cwd=tmp_path,
        env={**environment, **given, "WANDB_MODE": "offline", "WANDB_PROJECT": "the_agents"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Ignor" not in done.stderr
    folder = tmp_path / "runs" / "of_a_sweep" / "version_0"
    (path,) = folder.glob("wandb/offline-run-*-run45678/*.wandb")
    (run,) = (record.run for record in wandb_records(path) if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.sweep_id, run.project) == ("run45678", "sweep123", "the_agents")
    config = {item.key: item.value_json for item in run.config.update}
    assert {name: yaml.safe_load(config[name]) for name in values} == pytest.approx(values)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["optimizer"]["init_args"]["lr"] == values["model.optimizer.init_args.lr"]
