"""The folder of an export: whole or not there, and nothing of the user's lost."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_lightning.export.record import read_record

WRITTEN = {
    *("config.yaml", "model.safetensors", "denoiser.pt2", "denoiser.onnx", "denoiser.onnx.data"),
    *("model_index.json", "scheduler", "unet"),
}
"""All that exports write, of whatever format."""


def check_output(output: Path, overwrite: bool) -> None:
    """Raise a ValueError that says why, and what to do, if nothing may be written to the folder ``output``.

    A folder that holds anything is left alone; with ``overwrite`` one that holds an earlier export, and nothing else,
    may be replaced.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output={str(output)!r}: is a file: give a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"output={str(output)!r}: holds files: give another folder, or --overwrite to replace it")
    try:
        read_record(output)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"output={str(output)!r}: was not written by an export, and is not replaced: give another folder"
        ) from error
    if foreign := sorted(path.name for path in output.iterdir() if path.name not in WRITTEN):
        raise ValueError(f"output={str(output)!r}: holds {foreign[0]}, which no export wrote: give another folder")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Inside, an empty folder to write to; afterwards it is ``output``. If there was an exception it is gone.

    What was at ``output`` until then is replaced at the end: look first, with :func:`check_output`.

    Raises:
        ValueError: if no folder can be made there.
    """
    output = output.resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # beside the output, so that it can be renamed; hidden
        place = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ValueError(f"output={str(output)!r}: no folder can be made there ({error.strerror})") from error
    try:
        made, former = place / "made", place / "former"
        made.mkdir()
        yield made
        if output.exists():
            output.rename(former)
        try:
            made.rename(output)
        except OSError:
            if former.exists():
                former.rename(output)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
