import subprocess
import sys
from importlib import import_module
from pkgutil import resolve_name

import pytest

import diffusion_lightning
from diffusion_lightning.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_same_module(old, new):
    module = import_module(f"diffusion_lightning.{new}")
    assert import_module(f"diffusion_lightning.{old}") is module
    assert module.__name__ == module.__spec__.name == f"diffusion_lightning.{new}"


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("module.ScoreModule", "ScoreModule"),
        ("augmentation.GeometricAugmentation", "GeometricAugmentation"),
        ("schedule.LinearDecay", "LinearDecay"),
        ("precision.AutoPrecision", "AutoPrecision"),
        ("checkpoint.WholeCheckpointIO", "WholeCheckpointIO"),
    ],
)
def test_a_class_path_of_an_old_config_is_that_class(old, name):
    assert resolve_name(f"diffusion_lightning.{old}") is getattr(diffusion_lightning, name)


def test_an_old_name_comes_first_in_a_process_as_well_as_later():
    code = """
from diffusion_lightning.module import ScoreModule
import diffusion_lightning.augmentation as old
from diffusion_lightning.data import augmentation
from diffusion_lightning import training
assert ScoreModule.__module__ == "diffusion_lightning.training.module"
assert old is augmentation
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_other_names_are_still_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"diffusion_lightning\.modul'"):
        import_module("diffusion_lightning.modul")


def test_a_class_is_found_where_it_was():
    from diffusion_lightning.callbacks import checkpoints

    assert checkpoints.BestCheckpoint is diffusion_lightning.BestCheckpoint
