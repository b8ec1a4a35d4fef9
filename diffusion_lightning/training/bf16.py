"""bf16 where a machine multiplies it in hardware."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from diffusion_lightning.messages import inform


def has_bf16_units(kind: str) -> bool:
    """Whether a device of this type, ``"cpu"`` or ``"cuda"``, multiplies bf16 in hardware.

    Units are: AVX512-BF16 or AMX on a CPU, compute capability 8.0 or above on a GPU; without them bf16 is emulated and
    slower than float32.
    """
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind == "cpu":
        capabilities = _cpu_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def bf16_if_units(kind: str, tell: bool = False) -> AbstractContextManager:
    """Autocast to bf16 on a device of this type if it has the units, else nothing.

    Args:
        kind: ``"cpu"``, ``"cuda"``, ….
        tell: say in one line which of the two it is.
    """
    use_bf16 = has_bf16_units(kind)
    if tell:
        inform(f"precision: {'bf16-mixed' if use_bf16 else '32-true'} on {kind}")
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=use_bf16)


def _cpu_capabilities() -> Mapping[str, Any]:
    """What this machine's processor can do, as far as torch tells."""
    if not hasattr(torch.cpu, "get_capabilities"):
        _say_unknown()
        return {}
    return torch.cpu.get_capabilities()


@cache
def _say_unknown() -> None:
    """Once in a process."""
    inform(
        f"precision: torch {torch.__version__} cannot tell whether this CPU has bf16 units, a newer one can; "
        "if it has, train with --trainer.precision bf16-mixed"
    )
