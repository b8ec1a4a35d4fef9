"""Samples with numbers that are infinite or not a number: how many, and what is told of them."""

from torch import Tensor

from diffusion_lightning.messages import warn


def count_broken(samples: Tensor) -> int:
    """How many of samples ``(B, …)`` have a value that is not finite."""
    return int((~samples.isfinite().flatten(1).all(1)).sum())


def broken_samples(broken: int, total: int) -> str:
    """How many samples are not finite, and why that may be; without an end."""
    few = f"all {total:,}" if broken == total else f"{broken:,} of {total:,}"
    return (
        f"{few} samples are not finite (NaN or infinite): the weights have diverged (train with a smaller learning "
        "rate), or the sampler's settings do not suit them (more steps, a smaller snr)"
    )


def warn_of_broken(broken: int, total: int, what_follows: str = "pictures show each as a tile with a cross") -> None:
    """Warn of samples that are not finite, if there are any; and say what becomes of them."""
    if broken:
        warn(f"{broken_samples(broken, total)}; {what_follows}")
