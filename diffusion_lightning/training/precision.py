"""bf16 where the machine multiplies it in hardware, float32 elsewhere."""

import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info
from torch import nn


class AutoPrecision(Precision):
    """Lightning's ``bf16-mixed`` if the device that trains has bf16 units, else ``32-true``; says which at the start.

    Weights, optimizer, EMA, losses and the samplers' states are float32 either way: only the network's matrix products
    and convolutions run in bf16, which needs no loss scaling. Units are: AVX512-BF16 or AMX on a CPU, compute
    capability 8.0 or above on a GPU; without them bf16 is emulated and slower than float32.

    Use: ``trainer.precision: auto``, or in Python ``Trainer(precision="auto")`` with :class:`Trainer`, or this plugin
    for a trainer of Lightning's.
    """

    def __init__(self) -> None:
        self._module: weakref.ref[nn.Module] | None = None
        self._announced = False

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Remember which module is trained: only when it runs is it known on which device."""
        self._module = weakref.ref(module)
        return module

    def forward_context(self) -> AbstractContextManager:
        """Autocast to bf16 on a device that has the units, else nothing."""
        module = self._module() if self._module is not None else None
        kind = "cpu" if module is None else next(module.parameters()).device.type
        use_bf16 = has_bf16_units(kind)
        if not self._announced:
            rank_zero_info(f"precision: {'bf16-mixed' if use_bf16 else '32-true'} on {kind}")
            self._announced = True
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=use_bf16)


class Trainer(LightningTrainer):
    """Lightning's, which takes ``precision="auto"`` too: that of :class:`AutoPrecision`.

    Args:
        precision: ``"auto"``, bf16-mixed where the device that trains has units for it and 32-true elsewhere; or one of
            Lightning's, such as ``"32-true"`` (its default), ``"bf16-mixed"``, ``"16-mixed"``.
        kwargs: Lightning's.
    """

    def __init__(self, *, precision: Literal["auto"] | _PRECISION_INPUT | None = None, **kwargs: Any) -> None:
        if precision == "auto":
            given = kwargs.get("plugins")
            plugins = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
            # a config of before there was the option has the plugin
            if not any(isinstance(plugin, AutoPrecision) for plugin in plugins):
                plugins.append(AutoPrecision())
            super().__init__(**{**kwargs, "plugins": plugins})
        else:
            super().__init__(precision=precision, **kwargs)


def has_bf16_units(kind: str) -> bool:
    """Whether a device of this type, ``"cpu"`` or ``"cuda"``, multiplies bf16 in hardware."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind == "cpu":
        capabilities = _cpu_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def _cpu_capabilities() -> Mapping[str, Any]:
    """What this machine's processor can do, as far as torch tells."""
    if not hasattr(torch.cpu, "get_capabilities"):
        _say_unknown()
        return {}
    return torch.cpu.get_capabilities()


@cache
def _say_unknown() -> None:
    """Once in a process."""
    rank_zero_info(
        f"precision: torch {torch.__version__} cannot tell whether this CPU has bf16 units, a newer one can; "
        "if it has, --trainer.precision bf16-mixed"
    )
