"""The denoiser as an ONNX model, for any batch size."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.export.program import check_function, export_program
from diffusion_lightning.export.record import NAME

try:
    import onnxruntime
    import onnxscript  # noqa: F401 — torch.onnx writes by it
except ImportError as error:
    raise ImportError(
        "format=onnx: needs the packages onnx, onnxscript and onnxruntime: pip install 'diffusion-lightning[export]'"
    ) from error

FILE = "denoiser.onnx"

TOLERANCE = 1e-4

LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights that one file may hold; those of larger models lie beside it, in ``denoiser.onnx.data``."""


def save_onnx(denoiser: Denoiser, folder: Path, *, shape: Sequence[int], record: str | None = None) -> None:
    """Write ``denoiser.onnx``, and compare what ONNX Runtime computes from it with the denoiser.

    Its inputs are ``x`` ``(batch, *shape)`` and ``t`` ``(batch,)`` in float32 and, for a network with classes,
    ``labels`` ``(batch,)`` in int64; its output is ``denoised``, E[x0 | x_t = x]. Otherwise as
    :func:`diffusion_lightning.export.program.save_program`; the ``record`` is in the model's metadata.

    Raises:
        ValueError: if the model computes something else.
    """
    program = export_program(denoiser, shape)
    size = sum(weight.nbytes for weight in (*denoiser.parameters(), *denoiser.buffers()))
    model = torch.onnx.export(program, dynamo=True, output_names=["denoised"], verbose=False)
    assert model is not None
    if record is not None:
        model.model.metadata_props[NAME] = record
    model.save(str(folder / FILE), external_data=size > LARGEST_FILE)
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["denoised"], given)[0])

    check_function(run, denoiser, shape, TOLERANCE)
