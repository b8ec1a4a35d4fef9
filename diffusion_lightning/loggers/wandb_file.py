"""What W&B has written of a run: reading its ``.wandb`` files, which hold whatever outlived the process.

A file is protobuf records in the log format of LevelDB: blocks of 32 KiB, in each of them pieces with a header of
seven bytes (check sum, length, kind).
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BLOCK = 32768
HEADER = struct.Struct("<IHB")
WHOLE, LAST = 1, 4  # kinds of a piece that ends a record


def next_step(folder: Path, run_id: str) -> int:
    """The first step of a run that none of its offline parts in ``folder`` has; 0 without any."""
    steps = [-1]
    for path in folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"):
        with suppress(OSError):
            steps += _steps(path.read_bytes())
    return max(steps) + 1


def _steps(data: bytes) -> Iterator[int]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    with suppress(DecodeError):  # the end of a file whose process was killed may be torn
        for message in _messages(data):
            record = Record.FromString(message)
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num


def _messages(data: bytes) -> Iterator[bytes]:
    position, message = HEADER.size, b""  # W&B's own header is as long
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        _, length, kind = HEADER.unpack_from(data, position) if left >= HEADER.size else (0, 0, 0)
        if kind == 0:  # the rest of the block is empty
            position += left
            continue
        position += HEADER.size + length
        if position > len(data):
            return
        message += data[position - length : position]
        if kind in (WHOLE, LAST):
            yield message
            message = b""
