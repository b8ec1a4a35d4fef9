"""The entry of the `lightning` command: what it answers by itself, and Ctrl-C while libraries load."""

import os
import re
import signal
import subprocess
import sys

import pytest

from diffusion_lightning.commands import cli


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "usage: lightning COMMAND"),
        (["-h"], 0, "usage: lightning COMMAND"),
        (["--help"], 0, "usage: lightning COMMAND"),
        (["--version"], None, "diffusion_lightning "),
        (["smaple"], 1, "lightning: error: 'smaple' is no command (did you mean sample?)"),
        (["completion", "bash"], None, "# AUTOMATICALLY GENERATED"),
    ],
)
def test_it_answers_without_the_libraries(args, code, said):
    """In a process of its own, which is fast if it loads none."""
    program = (
        f"import sys; sys.argv[1:] = {args!r}\n"
        "from diffusion_lightning.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    code = done.code\nelse:\n    code = None\n"
        f"assert code == {code!r}, code\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'yaml'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).startswith(said)


def test_the_version(capsys):
    cli.main(["--version"])
    assert re.fullmatch(
        r"diffusion_lightning \d+\.\d+\.\d+\S* \(python 3\.\d+\.\d+\S*, torch \S+, lightning \S+\)\n",
        capsys.readouterr().out,
    )


def test_ctrl_c_while_libraries_load_is_silent(tmp_path):
    """The package's command stands still while it is imported, in code that takes any exception for its own."""
    (tmp_path / "jsonargparse.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\n"
        "try:\n    time.sleep(300)\nexcept BaseException as error:\n    raise ImportError('no') from error\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_lightning", "fit"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PRELOADED": "0"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert err == ""


def test_afterwards_ctrl_c_is_what_it_was(monkeypatch):
    found = []
    monkeypatch.setattr(cli, "_load", lambda *_: lambda _: found.append(signal.getsignal(signal.SIGINT)))
    former = signal.getsignal(signal.SIGINT)
    cli.main(["fit"])
    assert found == [former]


def test_samples_are_drawn_without_lightning(make_module, make_trainer, make_data, tmp_path):
    trainer = make_trainer()
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    program = (
        "import sys; from diffusion_lightning.commands.cli import main\n"
        "main(['sample', '--ckpt_path', 'a.ckpt', '--num', '2', '--sampler', 'Heun', '--sampler.steps', '2'])\n"
        "heavy = {'lightning', 'torchmetrics', 'torchvision', 'wandb', 'matplotlib', 'scipy', 'rich', 'IPython'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples.png").is_file()


@pytest.mark.parametrize(("command", "option"), [("fit", "--data.batch_size"), ("sample", "--batch_size")])
def test_without_memory_it_says_how_to_need_less(monkeypatch, capsys, command, option):
    def needs_a_petabyte(_):
        import torch

        torch.empty(2**50)

    monkeypatch.setattr(cli, "_load", lambda *_: needs_a_petabyte)
    with pytest.raises(SystemExit) as done:
        cli.main([command])
    assert done.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"lightning: error: out of memory: give a smaller {option}, or run it where")
    assert told.count("\n") == 1
