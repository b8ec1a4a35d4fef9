"""``python -m diffusion_lightning …`` as a process of its own that need not import everything first.

The imports take seconds, and hundreds of tests start the command as a process. After :func:`install`,
``subprocess.Popen`` of it asks a server, one for each process of pytest, which has done the imports and nothing else,
to fork. What a test sees is what it would see of a new process: number, exit code or signal, output, folder,
environment, process group and command line; the processes that it starts by ``python -m`` itself, as those of DDP, are
of the same kind. With PRELOADED=0 in its environment a process imports everything itself, as on systems other than
Linux; a process elsewhere forks by :class:`Popen` from the server whose address is its PRELOADED.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

MODULES = ("diffusion_lightning", "diffusion_lightning.__main__", "torch.distributed.run")
"""What is run by forked processes."""

SERVER = "import preloaded; preloaded.serve({address!r})"

_New = subprocess.Popen
_address: str | None = None


def install() -> None:
    """From now on, ``subprocess.Popen`` forks what it can."""
    if sys.platform == "linux" and os.environ.get("PRELOADED") != "0":
        subprocess.Popen = Popen  # type: ignore[misc]


class Popen(_New):  # type: ignore[type-arg]
    """A process whose parent is the server, which tells how it ended; or a usual one, if it is of another program."""

    _connection: socket.socket | None = None

    def _execute_child(  # type: ignore[override]
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, *others: Any,
    ) -> None:  # fmt: skip
        env = dict(os.environ if env is None else env)
        if not _is_known(args) or env.get("PRELOADED") == "0":
            pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
            settings = (executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell)
            return super()._execute_child(args, *settings, *pipes, *others)  # type: ignore[misc]
        start_new_session = others[5]
        request = {
            "args": [str(arg) for arg in args[1:]],
            "folder": str(Path(cwd or ".").absolute()),
            "environment": {str(name): str(value) for name, value in env.items()},
            "group": 0 if start_new_session else os.getpgrp(),
        }
        files = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server())
        socket.send_fds(self._connection, [b"!"], files)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._told(wait=True)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _told(self, wait: bool) -> int:
        """The next number that the server says."""
        assert self._connection is not None
        said = self._connection.recv(8, 0 if wait else socket.MSG_DONTWAIT)
        return int.from_bytes(said, "little") if said else signal.SIGKILL  # the server itself was ended

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        try:
            status = self._told(wait=not wait_flags & os.WNOHANG)
        except BlockingIOError:
            return 0, 0
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **kwargs: Any) -> int | None:  # type: ignore[override]
        if self._connection is None:
            return super()._internal_poll(_deadstate, **kwargs)  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _is_known(args: Any) -> bool:
    if not isinstance(args, list | tuple) or args[0] != sys.executable:
        return False
    _, *options = [arg for arg in args if arg != "-u"]
    return options[:1] == ["-m"] and options[1] in MODULES


def server() -> str:
    """The address of this process's server, which ends with this process, or of the one that it was told."""
    global _address
    if _address is None:
        _address = os.environ.get("PRELOADED")
    if _address is None:
        _address = str(Path(tempfile.mkdtemp(), "server"))
        search = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        server = _New(
            [sys.executable, "-c", SERVER.format(address=_address)],
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.PIPE,  # closed when this process ends
            stdout=subprocess.PIPE,
            preexec_fn=os.setpgrp,  # no session of its own, or what it forks could be of no group of this one
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        atexit.register(_end, server)
    return _address


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()  # its input may stay open in processes that this one has forked
    for pipe in (server.stdin, server.stdout):
        assert pipe is not None
        pipe.close()
    server.wait()
    assert _address is not None
    shutil.rmtree(Path(_address).parent)


def serve(address: str) -> None:
    """Fork for every request, until standard input ends."""
    global _address
    _address = address
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    parts = len(os.environ["PYTHONPATH"].split(os.pathsep))
    own_path = sys.path[1 + parts :]
    install()  # before others import what it replaces
    _preload()
    gc.freeze()  # or a collection in a forked process would touch, and so copy, all that it shares with this one
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    listening.settimeout(0.2)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    os.set_blocking(0, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            if not os.read(0, 1):
                os.unlink(address)
                os.rmdir(os.path.dirname(address))
                os._exit(0)
        with contextlib.suppress(TimeoutError):
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    # the process that waits for the one that was asked for
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listening.close()
    connection.settimeout(None)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid:
        for file in (0, 1, 2, *files):
            os.close(file)
        with contextlib.suppress(ProcessLookupError):
            _set_group(pid, request["group"])
        connection.sendall(pid.to_bytes(8, "little"))
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody wants to know
            connection.sendall(status.to_bytes(8, "little"))
        os._exit(0)
    # the process that was asked for
    connection.close()
    _set_group(0, request["group"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    rank_zero_only.rank = _get_rank() or 0  # which Lightning asks the environment for when it is imported
    *options, module = request["args"][: request["args"].index("-m") + 2]
    sys.argv = ["-m", *request["args"][len(options) + 1 :]]
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through="-u" in options)  # type: ignore[union-attr]
    search = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [request["folder"], *search, *own_path]
    _run(module)


def _run(module: str) -> None:
    """Run it as the main module, and end as Python does, but for taking all that was imported down again."""
    code: object = 0
    try:
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]
    except SystemExit as end:
        code = end.code
        if not (code is None or isinstance(code, int)):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(int(code or 0) & 0xFF)  # type: ignore[call-overload]


def _set_group(pid: int, group: int) -> None:
    """Put a process into that group of processes, or into one of its own if it is of a session elsewhere."""
    try:
        os.setpgid(pid, group)
    except PermissionError:
        os.setpgid(pid, 0)


def _preload() -> None:
    """Import what the commands do, and only import."""
    import diffusion_lightning

    for module in pkgutil.walk_packages(diffusion_lightning.__path__, "diffusion_lightning."):
        if not module.name.endswith("__main__") and ".export." not in module.name:
            importlib.import_module(module.name)
    for name in ("torch.distributed.run", "torch.distributed.fsdp", "torchvision.models"):
        importlib.import_module(name)
    sys.modules["wandb"] = None  # type: ignore[assignment]  # it would keep the settings of now
    importlib.import_module("timm.optim")
    del sys.modules["wandb"]
    assert not {"wandb", "onnxruntime"} & set(sys.modules)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has none of the threads"
