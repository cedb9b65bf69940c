"""Reads headers of safetensors files: tensors and the file's length. `gguf_header` reads GGUF's.

Source: safetensors' format description.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, BinaryIO, NamedTuple

from serve_app.errors import ModelFileError
from serve_app.store.models.kinds import Shapes

HEADER_BYTES = 100_000_000
"""The longest header that a file may have, as the format says."""

_LENGTH_BYTES = 8


class TensorEntry(NamedTuple):
    """The position of a tensor. dtype: as safetensors names it; start: the byte of the file at which it begins."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def header(file: BinaryIO) -> dict[str, Any]:
    """Return the header of a safetensors file: one entry for each tensor, and "__metadata__" if present.

    Errors: ModelFileError for a file of another kind.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 0 < length <= HEADER_BYTES:
        raise ModelFileError("is no safetensors file: its header is not there")
    written = file.read(length)
    try:
        if len(written) < length:
            raise ValueError("cut off")
        entries = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise ModelFileError("is no safetensors file: its header cannot be read, or is cut off") from error
    if not isinstance(entries, dict):
        raise ModelFileError("is no safetensors file: its header says nothing of tensors")
    return entries


def shapes(file: BinaryIO, size: int) -> Shapes:
    """Return the tensors of a safetensors file of a size in bytes. Errors: ModelFileError if it is none, or cut off."""
    found, whole = described(file)
    if size < whole:
        raise ModelFileError(f"is cut off: it has {size:,} of {whole:,} bytes")
    return found


def described(file: BinaryIO) -> tuple[Shapes, int]:
    """Return the tensors of a safetensors file, and its length in bytes. Errors: ModelFileError."""
    entries = header(file)
    start = file.tell()
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    try:
        found = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        ends = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError("is no safetensors file: its header has no shapes of tensors") from error
    return found, start + ends


def entries(file: BinaryIO, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return the tensors' positions in a safetensors file of a size in bytes, and its metadata. Errors: ModelFileError
    if it is none, is cut off, or has a tensor whose bytes do not fit its shape.
    """
    said = header(file)
    start = file.tell()
    found: dict[str, TensorEntry] = {}
    try:
        metadata = {str(key): str(value) for key, value in (said.pop("__metadata__", None) or {}).items()}
        for name, entry in said.items():
            begin, end = map(int, entry["data_offsets"])
            found[name] = TensorEntry(str(entry["dtype"]), tuple(map(int, entry["shape"])), start + begin)
            bits = int("".join(filter(str.isdigit, entry["dtype"].partition("_")[0])) or 8)
            if (
                begin < 0
                or min(found[name].shape, default=0) < 0
                or (end - begin) * 8 != prod(found[name].shape) * bits
            ):
                raise ModelFileError(
                    f"has a tensor '{name}' of {end - begin:,} bytes, which are not those of its shape"
                )
            if start + end > size:
                raise ModelFileError(f"is cut off: it has {size:,} bytes, and '{name}' ends at {start + end:,}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError("is no safetensors file: its header does not say where tensors are") from error
    return found, metadata


def checked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass a safetensors file through, checking it. Errors: ModelFileError if it is none or ends too soon."""
    head, size, whole = bytearray(), 0, 0
    for piece in pieces:
        size += len(piece)
        if not whole:
            head += piece
            length = int.from_bytes(head[:_LENGTH_BYTES], "little")
            if len(head) < _LENGTH_BYTES or (len(head) < _LENGTH_BYTES + length <= _LENGTH_BYTES + HEADER_BYTES):
                continue
            found, whole = described(io.BytesIO(head))
            if not found:
                raise ModelFileError("holds no tensors")
            piece, head = bytes(head), bytearray()
        if size > whole:
            raise ModelFileError(f"has more than the {whole:,} bytes that its header tells of")
        yield piece
    if not whole:
        raise ModelFileError("is no safetensors file: its header is not there, or is cut off")
    if size < whole:
        raise ModelFileError(f"is cut off: it has {size:,} of {whole:,} bytes")
