import math

import pytest

from diffusion_lightning.report.units import duration, number, plain, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.15312, "0.1531"),
        (2.2, "2.2"),
        (1680.0, "1,680"),
        (1149.26, "1,149"),
        (12345.6, "12,346"),
        (1.234567e-05, "1.235e-05"),
        (0.0, "0"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (1e300, "1e+300"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1500, "1,500"), (0.1 + 0.2, "0.3"), (2e6, "2e+06"), (1e-5, "1e-05"), (0, "0"), (-20, "-20")]
)
def test_round_numbers_on_an_axis(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min"),
        (879, "14 min 39 s"),
        (3600, "1 h"),
        (90061, "1 d 1 h"),
        (86405, "1 d"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(20, "0.1 kB"), (1500, "1.5 kB"), (3_400_000, "3.4 MB")])
def test_sizes(count, text):
    assert size(count) == text
