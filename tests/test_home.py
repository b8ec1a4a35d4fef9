"""A home for who has none, as a container's user id without an entry in its system's list."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from diffusion_lightning import ImageFolder
from diffusion_lightning.home import default_cache, give_home, has_home

NAMES = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """This process's user has neither a home nor a name; temporary files go to a folder of the test."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (*NAMES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "x")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    return tmp_path


def test_a_home_is_made_once_and_said(nobody, capsys):
    assert not has_home()
    give_home()
    folder = nobody / f"diffusion_lightning-{os.getuid()}"
    assert os.environ["HOME"] == str(folder)
    assert os.environ["LOGNAME"] == f"user{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().err
    assert said == f"lightning: there is no home directory (HOME): caches are kept in {folder}\n"
    assert default_cache() == folder / ".cache" / "diffusion_lightning"
    give_home()
    assert capsys.readouterr().err == ""
    del os.environ["HOME"]
    give_home()
    assert os.environ["HOME"] == str(folder)


@pytest.mark.parametrize("home", ["", "/nonexistent", "relative"])
def test_what_is_no_home(nobody, monkeypatch, home):
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path("/"))
    monkeypatch.setenv("HOME", home)
    give_home()
    assert os.environ["HOME"].startswith(str(nobody))


def test_a_home_stays(nobody, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "me")
    give_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert "LOGNAME" not in os.environ
    assert capsys.readouterr().err == ""


def test_a_folder_that_somebody_else_made_is_not_taken(nobody):
    (nobody / f"diffusion_lightning-{os.getuid()}").symlink_to(nobody)
    give_home()
    home = Path(os.environ["HOME"])
    assert home.parent == nobody
    assert not home.is_symlink()


def test_python_without_the_command_needs_no_home_either(nobody):
    assert default_cache() == nobody / ".cache" / "diffusion_lightning"
    with pytest.raises(FileNotFoundError, match=r"data\.root='~/pictures' is not a folder"):
        ImageFolder("~/pictures").setup("fit")
