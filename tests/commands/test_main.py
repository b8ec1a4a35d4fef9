"""The entry of the `lightning` command: what it answers by itself, and Ctrl-C while libraries load."""

import os
import re
import signal
import subprocess
import sys

import pytest

from diffusion_lightning import __main__ as entry
from diffusion_lightning.commands import cli


@pytest.mark.parametrize(("args", "code"), [([], 2), (["-h"], 0), (["--help"], 0), (["--version"], None)])
def test_it_answers_without_the_libraries(args, code):
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
    assert done.stdout.startswith("diffusion_lightning " if args == ["--version"] else "usage: lightning COMMAND")


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
    monkeypatch.setattr(cli, "main", lambda: found.append(signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(sys, "argv", ["lightning", "fit"])
    former = signal.getsignal(signal.SIGINT)
    entry.main()
    assert found == [former]
