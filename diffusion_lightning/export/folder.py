"""The folder of an export: whole or not there, and nothing of the user's lost."""

import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_lightning.export.record import read_record

FILES = {"torch_export": "denoiser.pt2", "onnx": "denoiser.onnx"}
"""Of the formats that can be one file: its name in a folder, whose suffix a file of another name must have."""

SUFFIXES = (".onnx", ".pt2", ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".zip")
"""Of files: who gives such a name expects no folder."""

WRITTEN = {
    *("config.yaml", "model.safetensors", "denoiser.pt2", "denoiser.onnx", "denoiser.onnx.data"),
    *("model_index.json", "scheduler", "unet"),
}
"""All that exports write, of whatever format."""


def check_output(output: Path, overwrite: bool) -> None:
    """Raise a ValueError that says why, and what to do, if nothing may be written to ``output``, a folder.

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


def wanted_file(output: Path, format: str, overwrite: bool) -> str | None:
    """Which of a format's files is to be written as ``output`` itself; None if that is to be a folder.

    Raises:
        ValueError: if ``output`` is the name of a file that the format is not, or is there and may not be replaced.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        return None
    name = FILES.get(format)
    if name is None or suffix != Path(name).suffix:
        file = f"a file with the suffix {Path(name).suffix} or " if name is not None else ""
        raise ValueError(
            f"output={str(output)!r}: --format {format} is {file}a folder, such as --output {shlex.quote(output.stem)}"
        )
    if output.is_dir():
        raise ValueError(f"output={str(output)!r}: is a folder: give another name")
    if output.exists() and not overwrite:
        raise ValueError(f"output={str(output)!r}: is there already: give another name, or --overwrite to replace it")
    return name


@contextmanager
def whole_folder(output: Path, only: str | None = None) -> Iterator[Path]:
    """Inside, an empty folder to write to; afterwards it is ``output``. If there was an exception it is gone.

    With ``only``, the name of a file in it, that file is ``output``, and nothing else is kept.

    What was at ``output`` until then is replaced at the end: look first, with :func:`check_output`.

    Raises:
        ValueError: if no folder can be made there, or more than ``only`` has been written.
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
        if only is not None and (more := sorted(path.name for path in made.iterdir() if path.name != only)):
            raise ValueError(
                f"output={str(output)!r}: is too large for one file, {more[0]} lies beside it: give a folder"
            )
        if output.exists():
            output.rename(former)
        try:
            (made if only is None else made / only).rename(output)
        except OSError:
            if former.exists():
                former.rename(output)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
