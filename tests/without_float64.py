"""A device without float64, such as Apple's, on a computer that has none: its tensors compute on the CPU.

Inside :func:`device_without_float64`, what is sent to the device ``mps`` or made there is an :class:`OnDevice`. As on
the real one, a float64 tensor cannot be there, and a tensor of another device cannot be computed with one of it. What
is not shown: whether the real device has the operations that are asked for, and how it rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps")


@contextmanager
def device_without_float64() -> Iterator[torch.device]:
    """Inside, there is the device."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a weight on the device is of another class
    generator, torch.Generator = torch.Generator, _Generator  # type: ignore[misc]
    try:
        with _Moves(), _Makes():
            yield DEVICE
    finally:
        torch.Generator = generator  # type: ignore[misc]
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


class OnDevice(Tensor):
    """A tensor of the device; ``values`` has its numbers."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        if values.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        # to PyTorch's C++ it is on the CPU, for the real device is not to be had there
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            requires_grad=values.requires_grad,
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.values})"


class _Generator(torch.Generator):
    """One that says that it is on the device."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in given if isinstance(x, OnDevice)]
    elsewhere = [x for x in given if not isinstance(x, OnDevice) and x.ndim and x.is_floating_point()]
    is_copy = func is torch.ops.aten.copy_.default
    if here and elsewhere and not is_copy:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device")
    device = kwargs.get("device")
    stays = bool(here) if device is None else torch.device(device).type == DEVICE.type
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    args_there, kwargs_there = tree_map(lambda x: x.values if isinstance(x, OnDevice) else x, (args, kwargs))
    made = func(*args_there, **kwargs_there)
    if is_copy:
        return args[0]
    known = {id(x.values): x for x in here}  # what is computed in place is what was given
    return tree_map(lambda x: known.get(id(x)) or OnDevice(x) if isinstance(x, Tensor) and stays else x, made)


class _Makes(TorchDispatchMode):
    """Tensors made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Tensors sent to the device or back, and those that are made of numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to:
            return _moved(func, args[0], args[1:], kwargs)
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].values.tolist()
        if func is Tensor.cpu:
            return _moved(Tensor.to, args[0], ("cpu",), {})
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")) == DEVICE.type:
            if isinstance(args[0], Tensor):
                return _moved(Tensor.to, args[0], (DEVICE, kwargs.get("dtype") or args[0].dtype), {})
            return OnDevice(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def _moved(func: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """``x.to(*args, **kwargs)``, without a gradient where it leaves its device."""
    if args and isinstance(args[0], OnDevice):
        args = (DEVICE, args[0].dtype)
    copies = kwargs.get("copy", False)
    given = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, *_ = torch._C._nn._parse_to(*args, **given)  # type: ignore[attr-defined]
    is_here = isinstance(x, OnDevice)
    stays = is_here if device is None else device.type == DEVICE.type
    if is_here == stays:
        return func(x, dtype or x.dtype, copy=copies)
    values = (x.values if isinstance(x, OnDevice) else x.detach()).to(dtype or x.dtype)
    return OnDevice(values) if stays else values
