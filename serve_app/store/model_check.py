"""Whether model files can be what loaders want of them, as far as their headers tell: names and shapes of tensors.

A header is read once for a file's size and time. Knows no torch. Source: safetensors' format description; `gguf_header`
reads GGUF's.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock
from typing import Any, BinaryIO

from serve_app.errors import ModelFileError
from serve_app.store import gguf_header
from serve_app.store.catalog import TINY_VAES, Catalog
from serve_app.store.kinds import Shapes, refusal

FILES_KEPT = 4096
"""Of how many files it is remembered what was found."""
HEADER_BYTES = 100_000_000
"""The longest header that a file may have, as the format says."""

_LENGTH_BYTES = 8


class ModelCheck:
    """What is wrong with the files of a catalog. Every method may be called from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._found: OrderedDict[tuple[str, str, str, str], str | None] = OrderedDict()
        self._lock = Lock()

    def refusal(self, part: str, folder: str, name: str) -> str | None:
        """Return why a file cannot be a part of a model, None if it may. An absent one is left to who reads it."""
        if folder == "diffusers" or (folder == "vae" and name in TINY_VAES):
            return None
        try:
            stat = self._catalog.stat(folder, name)
        except ModelFileError:
            return None
        key = (part, folder, name, stat.etag)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        found = self._read(part, folder, name, stat.size)
        with self._lock:
            self._found[key] = found
            if len(self._found) > FILES_KEPT:
                self._found.popitem(last=False)
        return found

    def _read(self, part: str, folder: str, name: str, size: int) -> str | None:
        try:
            with self._catalog.open(folder, name) as file:
                gguf = name.lower().endswith(gguf_header.SUFFIX)
                found = gguf_header.shapes(file) if gguf else shapes(file, size)
        except ModelFileError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or type(error).__name__}"
        return refusal(part, found)


def header(file: BinaryIO) -> dict[str, Any]:
    """Return the header of a safetensors file: what it has of each tensor, and "__metadata__" if there is any.

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
    entries = header(file)
    start = file.tell()
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    try:
        found = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        ends = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError("is no safetensors file: its header has no shapes of tensors") from error
    if size < start + ends:
        raise ModelFileError(f"is cut off: it has {size:,} of {start + ends:,} bytes")
    return found
