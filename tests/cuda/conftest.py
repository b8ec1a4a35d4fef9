"""Tests on a GPU, against the CPU's values; ``CUDA_TESTS_ON=cpu`` runs their code with the CPU on both sides."""

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

# before the first product of matrices: without it cuBLAS may add up in another order each time
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ON = os.environ.get("CUDA_TESTS_ON", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ON == "cpu" or torch.cuda.is_available():
        return
    missing = pytest.mark.skip(reason="PyTorch finds no CUDA device here; CUDA_TESTS_ON=cpu tries the code")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(missing)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device under test, on which float32 is float32 and not TF32."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(ON)
    torch.backends.cudnn.allow_tf32 = kept


@pytest.fixture
def accelerator() -> str:
    """What Lightning calls it."""
    return "gpu" if ON == "cuda" else ON


@pytest.fixture
def close(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Asserts that the device's values are the CPU's within rounding, and has the largest deviation written down."""
    worst = 0.0

    def check(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], *, within: float) -> None:
        """|found − expected| ≤ within · max(1, |expected|'s largest), for each tensor by itself."""
        nonlocal worst
        pairs = [(found, expected)] if isinstance(expected, Tensor) else list(zip(found, expected, strict=True))
        for one, other in pairs:
            assert one.device.type == ON
            assert one.shape == other.shape
            scale = max(1.0, float(other.detach().abs().max()))
            deviation = float((one.detach().cpu().double() - other.detach().double()).abs().max()) / scale
            worst = max(worst, deviation)
            assert deviation <= within  # so that not a number fails

    yield check
    record_property("deviation", worst)
