"""The options that a shell completes are those that the parsers know."""

import json
from importlib.metadata import version

import pytest

from diffusion_lightning.commands.completion import OPTIONS, options_of_parsers


def test_the_options_on_disk_are_those_of_the_parsers():
    known = json.loads(OPTIONS.read_text(encoding="utf-8"))
    if known["lightning"] != version("lightning"):
        pytest.skip(f"they are those of lightning {known['lightning']}")
    assert known == options_of_parsers(), "write them anew: python -m diffusion_lightning.commands.completion"
