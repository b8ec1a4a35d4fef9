"""Which floating-point numbers a device computes with: float32 as it is written, and float64 where there is any."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch

Setting: TypeAlias = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How a setting is read, and how it is changed."""


def has_float64(device: torch.device) -> bool:
    """Whether tensors on the device can be float64; on Apple's cannot."""
    return device.type != "mps"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, products and convolutions in float32 are computed in float32, whatever is allowed outside.

    NVIDIA's cards otherwise round what they multiply to the ten bits of TF32: convolutions do by PyTorch's default,
    matrix products after ``torch.set_float32_matmul_precision("high")``; some CPUs know such shortcuts too. It can be
    used as a decorator. What is allowed is one setting for all threads; it is as it was afterwards.
    """
    # first those settings that each PyTorch has: compilers ask them, and get an error where only the others differ
    general: list[tuple[Setting, Any]] = [
        ((torch.get_float32_matmul_precision, torch.set_float32_matmul_precision), "highest"),
        (_attribute(torch.backends.cuda.matmul, "allow_tf32"), False),
        (_attribute(torch.backends.cudnn, "allow_tf32"), False),
    ]
    single = [(*place, place[0]()) for place in _single_operations()]
    changed: list[tuple[Callable[[Any], Any], Any]] = []
    try:
        for (get, put), exact in general:
            try:
                before = get()
            except RuntimeError:  # single operations have been set, of which this one cannot tell
                continue
            if before != exact:
                changed.append((put, before))
                put(exact)
        for get, put, _ in single:
            if get() not in ("ieee", "none"):
                put("ieee")
        yield
    finally:
        for put, before in reversed(changed):
            put(before)
        for get, put, before in single:
            if get() != before:
                put("none")  # most follow a more general setting, and go on following it
            if get() != before:
                put(before)


def _single_operations() -> list[Setting]:
    """How the settings of single operations, which PyTorch has from 2.9 on, are read and changed."""
    backends = torch.backends
    places = [getattr(backends.cudnn, "conv", None), getattr(backends.cudnn, "rnn", None), backends.cuda.matmul]
    places += [getattr(backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    return [_attribute(place, "fp32_precision") for place in places if hasattr(place, "fp32_precision")]


def _attribute(place: Any, name: str) -> Setting:
    return partial(getattr, place, name), partial(setattr, place, name)
