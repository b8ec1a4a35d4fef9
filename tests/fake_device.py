"""A device that is not there: mistakes of device are found where there is no GPU."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves


class Waited(Exception):
    """The host wanted to know what only the device knows."""


class FakeDevice(FakeTensorMode):
    """Inside, tensors on the device have shapes and no values; those on the CPU are real, and what is made of them.

    A tensor of the device with one left on the CPU raises, as on a GPU, and so does whatever would make the host wait
    for a value: ``DataDependentOutputException`` (a number), ``DynamicOutputShapeException`` (a shape), or
    :class:`Waited` (a copy).

    Args:
        kind: ``"cuda"``, on which torch has neither a backward pass, for its autograd asks the driver, nor generators;
            or ``"meta"``, on which it has the first.

    Attributes:
        copies: how often the host has waited so far until a tensor of its own was on the device.
    """

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.kind, self.copies = kind, 0
        self._is_inside = False  # of an operation on the device, where what is on the CPU is none of the host's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_inside:
            return super().__torch_dispatch__(func, types, args, kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_on_device = [isinstance(tensor, FakeTensor) for tensor in given]
        if not any(is_on_device) and torch.device(kwargs.get("device") or "cpu").type != self.kind:
            return func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            self.copies += waits and not is_on_device[-1]
        self._is_inside = True
        try:
            made = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._is_inside = False
        if any(isinstance(leaf, FakeTensor) and leaf.device.type == "cpu" for leaf in tree_leaves(made)):
            raise Waited(f"{func} copies from the device")
        return made


def fakes_cuda() -> bool:
    """Whether this torch can move a tensor to a CUDA device that is not there; 2.6 asks its driver."""
    try:
        with FakeDevice():
            torch.zeros(1).to("cuda")
    except RuntimeError:
        return False
    return True
