"""bf16 where the machine multiplies it in hardware, float32 elsewhere."""

import weakref
from contextlib import AbstractContextManager
from typing import Any, Literal

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.plugins.precision import Precision
from torch import nn

from diffusion_lightning.training.bf16 import bf16_if_units


class AutoPrecision(Precision):
    """Lightning's ``bf16-mixed`` if the device that trains has bf16 units, else ``32-true``; says which at the start.

    Weights, optimizer, EMA, losses and the samplers' states are float32 either way: only the network's matrix products
    and convolutions run in bf16, which needs no loss scaling. Units are what
    :func:`~diffusion_lightning.training.bf16.has_bf16_units` looks for.

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
        is_first, self._announced = not self._announced, True
        return bf16_if_units(kind, tell=is_first)


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
