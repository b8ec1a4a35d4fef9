"""The denoiser as a program of torch alone, by ``torch.export``, for any batch size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.export.record import NAME
from diffusion_lightning.guidance import Guidance
from diffusion_lightning.networks import DiffusersUNet

FILE = "denoiser.pt2"

TOLERANCE = 1e-5

MOST = 2**31 - 1
"""Examples in a batch; before torch 2.7 it must be said that there is an end."""

BATCHES = (1, 3, 8)
"""Sizes at which a program is compared with its denoiser; none is the one that it was traced with."""


class _Denoise(nn.Module):
    """``(x, t) -> E[x0 | x_t = x]``."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoiser.denoise(x, t)


class _DenoiseLabelled(_Denoise):
    """``(x, t, labels) -> E[x0 | x_t = x, label]``."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self.denoiser.denoise(x, t, labels=labels)


def save_program(denoiser: Denoiser, folder: Path, *, shape: Sequence[int], record: str | None = None) -> None:
    """Write ``denoiser.pt2``, and compare what it computes with the denoiser.

    ``torch.export.load("denoiser.pt2").module()(x, t[, labels])`` gives E[x0 | x_t = x] with torch alone: ``x``
    ``(B, *shape)`` and ``t`` ``(B,)`` in float32, ``labels`` ``(B,)`` in int64, any B; of a
    :class:`~diffusion_lightning.DiffusersUNet` B up to 63. For a network with classes the labels must be given; the
    number of classes, as a label, is the null class of those networks that have one. Times are not checked. The file
    holds the ``record``, too, as its extra file ``config.yaml``.

    Raises:
        ValueError: if the program computes something else, or this torch cannot read what it has written.
    """
    extra = {NAME: record} if record is not None else None
    torch.export.save(export_program(denoiser, shape), folder / FILE, extra_files=extra)
    try:
        program = torch.export.load(folder / FILE)
    except Exception as error:  # of torch 2.6 for a U-Net, and of a private type
        raise ValueError(
            f"torch {torch.__version__} cannot read back the program that it makes of this network "
            f"({type(error).__name__}): nothing is written; install a newer torch, or give --format onnx or "
            "--format safetensors"
        ) from error
    check_function(program.module(), denoiser, shape, TOLERANCE)


def export_program(denoiser: Denoiser, shape: Sequence[int]) -> ExportedProgram:
    """The traced program of ``(x, t[, labels])``; names of its arguments included."""
    inputs = example_inputs(denoiser, shape, batch=2)
    function = (_Denoise if len(inputs) == 2 else _DenoiseLabelled)(denoiser).eval()
    with torch.no_grad():
        function(*inputs)  # so that tables are there which are made at the first use, and not as part of the program
        # from 64 examples on, diffusers' U-Net takes another way through its code
        inside = denoiser.denoiser if isinstance(denoiser, Guidance) else denoiser
        is_of_diffusers = isinstance(getattr(inside, "network", None), DiffusersUNet)
        batch = Dim("batch", max=63 if is_of_diffusers else MOST)
        return export(function, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False)


def example_inputs(denoiser: Denoiser, shape: Sequence[int], batch: int) -> tuple[Tensor, ...]:
    """``(x, t)``, or ``(x, t, labels)`` for a network with classes: data of about [-1, 1], noised to random times."""
    generator = torch.Generator().manual_seed(batch)
    sde = denoiser.sde
    t = sde.uniform_times(torch.rand(batch, generator=generator))
    x0, noise = (torch.randn(batch, *shape, generator=generator) for _ in range(2))
    classes = denoiser.num_classes
    labels = (torch.arange(batch) % classes,) if classes else ()
    return sde.perturb(x0 / 2, t, noise), t, *labels


def check_function(function: Callable[..., Tensor], denoiser: Denoiser, shape: Sequence[int], tolerance: float) -> None:
    """Compare with the denoiser at other batch sizes.

    Raises:
        ValueError: if they differ by more than ``tolerance`` times the largest value of input and output, or 1.
    """
    for batch in BATCHES:
        x, t, *labels = example_inputs(denoiser, shape, batch)
        with torch.no_grad():
            expected = denoiser.denoise(x, t, **({"labels": labels[0]} if labels else {}))
        difference = (function(x, t, *labels) - expected).abs().max().item()
        scale = max(1.0, x.abs().max().item(), expected.abs().max().item())
        if not difference <= tolerance * scale:
            raise ValueError(
                f"the exported program differs from the checkpoint by {difference:.2g} in a batch of {batch}, "
                f"by more than {tolerance:g} of its values: nothing is written"
            )
