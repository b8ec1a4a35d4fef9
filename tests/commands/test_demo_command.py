"""`lightning demo`: a line for each mistake, before the page is served; the page itself is in tests/demo."""

import socket
import sys

import pytest
from tiny_run import failure


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys) -> None:
    for name in [name for name in sys.modules if name.startswith("diffusion_lightning.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = failure(capsys, "demo", "--ckpt_path=nowhere")
    assert line == "the page needs gradio: pip install 'diffusion-lightning[demo]', or -e '.[demo]'"


def test_a_port_that_is_taken(capsys) -> None:
    from diffusion_lightning.commands.demo import _check_port
    from diffusion_lightning.commands.usage import UsageError

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=f"host=127.0.0.1, port={port}: cannot be used .*: give another --port"):
            _check_port("127.0.0.1", port)
    _check_port("127.0.0.1", port)
    with pytest.raises(UsageError, match="port=70000: must be from 0 to 65535"):
        _check_port("127.0.0.1", 70000)


def test_a_checkpoint_that_is_not_there(capsys) -> None:
    pytest.importorskip("gradio")
    assert "nowhere" in failure(capsys, "demo", "--ckpt_path=nowhere")
