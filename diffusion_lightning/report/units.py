"""How numbers are written on the page."""

import math


def number(value: float) -> str:
    """With four significant digits, from 10,000 on to the whole, and whole numbers whole."""
    if not math.isfinite(value):
        return str(value)
    if 1e15 > abs(value) >= 1e4 or (value == round(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:,.4g}"


def plain(value: float) -> str:
    """A round number as it is read on an axis: 20, 0.001, 1,500, 2e+06, 1e-05."""
    return f"{value:,.0f}" if value == round(value) and 1 <= abs(value) < 1e6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """In the two largest units that it has: ``14 min 39 s``; below ten seconds with tenths."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole % 60, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


def size(count: int) -> str:
    """Bytes as kB or MB, of 1000."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"
