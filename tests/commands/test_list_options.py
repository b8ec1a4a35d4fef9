"""Lists on the command line as one types them, and what is said where a word belongs to nothing."""

from collections.abc import Sequence
from typing import Literal

import pytest

from diffusion_lightning.commands.list_options import is_list, with_lists


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (list[int], True),
        (list[int] | None, True),
        (list[Literal["a", "b"]] | None, True),
        (Sequence[int], True),
        (tuple[float, float], True),
        (list[int] | int, False),
        (list[int] | str | int, False),
        (str, False),
        (int | None, False),
        (None, False),
    ],
)
def test_which_types_are_of_lists(kind, expected):
    assert is_list(kind) is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--labels 3", "--labels [3]"),
        ("--labels=3", "--labels [3]"),
        ("--labels 3 8", "--labels [3,8]"),
        ("--labels 3,8", "--labels [3,8]"),
        ("--labels 3, 8", "--labels [3,8]"),
        ("--labels -1 2 --num 3", "--labels [-1,2] --num 3"),
        ("--labels [3,8] --quiet", "--labels [3,8] --quiet"),
        ("--labels [3, 8]", "--labels [[3,8]]"),  # the shell has cut a list in two: refused by its type
        ("--labels null", "--labels null"),
        ("--labels", "--labels"),
        ("--num 3 --quiet", "--num 3 --quiet"),
        ("--num=3", "--num=3"),
        ("fit --config a.yaml b.yaml -c c d", "fit --config a.yaml --config b.yaml -c c -c d"),
        ("--callbacks+ A", "--callbacks+ A"),
    ],
)
def test_a_command_line(given, expected):
    assert list(with_lists(given.split(), ["--labels"])) == expected.split()


def test_a_word_too_many():
    with pytest.raises(ValueError, match=r"^'run' follows the value of --name: .*, --name '\[my,run\]', .* 'my run'$"):
        list(with_lists(["--name", "my", "run"], []))
