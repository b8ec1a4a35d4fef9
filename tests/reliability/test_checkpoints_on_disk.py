"""Checkpoints and the disk: what is damaged is seen and passed over, what cannot be written harms nothing."""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import DAMAGES, append, flip_a_bit, lose_the_end, truncate, zero_a_block
from hurt_runs import CONFIGS, assert_same_run, checkpoint, leaves

from diffusion_lightning.commands import cli
from diffusion_lightning.training.checkpoint_file import load_checkpoint, load_newest


@pytest.fixture
def checkpoints(uninterrupted: Callable, tmp_path: Path) -> Path:
    """A copy of the checkpoints of a run."""
    return Path(shutil.copytree(uninterrupted().run / "checkpoints", tmp_path / "checkpoints"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_or_without_effect(checkpoints, damage):
    last, draw = checkpoints / "last.ckpt", random.Random(0)
    whole = last.read_bytes()
    expected = dict(leaves(load_checkpoint(last)))
    refused = []
    for _ in range(25):
        content = bytearray(whole)
        damage(content, draw)
        last.write_bytes(content)
        try:
            loaded = load_checkpoint(last)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert dict(leaves(loaded)) == expected
    assert refused or damage is append
    assert all("is damaged" in message and "\n" not in message for message in refused)


def can_be_read(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_end, zero_a_block])
def test_the_newest_intact_one_is_taken(checkpoints, damage):
    last = checkpoints / "last.ckpt"
    whole, draw = last.read_bytes(), random.Random(0)
    while can_be_read(last):  # a bit of the padding is nobody's
        content = bytearray(whole)
        damage(content, draw)
        last.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        found = load_newest(checkpoints)
    assert found is not None
    others = [path for path in checkpoints.glob("*.ckpt") if path != last]
    assert found[0] == max(others, key=lambda path: path.stat().st_mtime_ns)
    (message,) = [str(warning.message) for warning in caught]
    assert "last.ckpt" in message
    assert "\n" not in message


def test_nothing_is_said_of_older_ones_that_are_damaged(checkpoints):
    (checkpoints / "previous.ckpt").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_newest(checkpoints)
    assert found is not None
    assert found[0] == checkpoints / "last.ckpt"


def error_of(*args: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The command's one line about what is wrong; it ends with 1."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(args))
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning: error")]
    return line


@pytest.mark.parametrize("command", ["fit", "validate", "sample"])
def test_a_damaged_file_that_was_asked_for_is_an_error(checkpoints, capsys, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    last = checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:50_000])
    config = () if command == "sample" else ("--config", str(CONFIGS / "quickstart.yaml"))
    line = error_of(command, *config, "--ckpt_path", str(last), capsys=capsys)
    assert f"ckpt_path={str(last)!r}: is damaged" in line


def test_no_intact_checkpoint_is_an_error(checkpoints, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = Path("runs/quickstart/version_0")
    shutil.copytree(checkpoints, run / "checkpoints")
    for path in run.glob("checkpoints/*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    line = error_of("fit", "--config", str(CONFIGS / "quickstart.yaml"), "--ckpt_path", "last", capsys=capsys)
    assert "no checkpoint" in line
    assert all(name in line for name in ("is intact", "epoch=0002.ckpt", "last.ckpt", "previous.ckpt"))


def test_a_run_goes_on_from_the_one_before_a_damaged_one(make_command, uninterrupted):
    command = make_command()
    command(code=-9, MISFORTUNES="SIGKILL on_train_batch_end 9")
    content = bytearray(command.last.read_bytes())
    lose_the_end(content, random.Random(0))
    command.last.write_bytes(content)
    said = command.resume()
    assert said.count("is damaged") == 1
    assert_same_run(command.run, uninterrupted().run)


def test_a_full_disk_and_a_kill_while_writing(make_command, uninterrupted):
    command = make_command()
    said = command(code=-9, MISFORTUNES="full write 2; half write 3")
    # written after steps 2, 4 and 5: the first well, the second not, of the third a half
    assert checkpoint(command.run)["global_step"] == 2
    (line,) = [line for line in said.splitlines() if "could not be written" in line]
    assert "last.ckpt" in line
    assert "GiB free" in line
    assert [path.name for path in command.run.rglob("*.part")] == ["last.ckpt.part"]  # of the kill
    command.resume()
    assert not list(command.folder.rglob("*.part"))
    assert_same_run(command.run, uninterrupted().run)


def test_a_signal_after_a_checkpoint_that_could_not_be_written(make_command):
    """While the pictures are drawn nothing is lost by leaving, if the checkpoint before them is there."""
    command = make_command()
    said = command(code=143, MISFORTUNES="full write 3; SIGTERM sample 1")
    assert "stopped by SIGTERM after step 5 (saved)" in said
    assert checkpoint(command.run)["global_step"] == 5
    assert not list(command.folder.rglob("*.part"))
