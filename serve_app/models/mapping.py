"""Room for model files under a limit of private memory.

Files are opened by mapping them, privately and writable, as safetensors and torch do: they take no memory of the
process's own until something is written, but the system counts them as if they did (RLIMIT_DATA).
"""

from __future__ import annotations

import resource
import threading
from pathlib import Path

_SUFFIXES = (".safetensors", ".gguf")
_lock = threading.Lock()
_granted = 0


def make_room(path: Path) -> None:
    """Let the soft limit grow by the file, and shrink by those that are mapped no more. Errors: OSError."""
    global _granted
    if not hasattr(resource, "RLIMIT_DATA") or not (maps := Path("/proc/self/maps")).exists():
        return
    with _lock:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft == resource.RLIM_INFINITY:
            return
        wanted = sum(map(_mapped_bytes, maps.read_text().splitlines())) + path.stat().st_size
        soft, _granted = soft - _granted + wanted, wanted
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _mapped_bytes(line: str) -> int:
    """Return the size of a mapping if it is a model file's, from its line in /proc/self/maps."""
    addresses, permissions, *rest = line.split(maxsplit=5)
    if permissions != "rw-p" or not any(suffix in rest[-1] for suffix in _SUFFIXES):
        return 0
    begin, end = (int(address, 16) for address in addresses.split("-"))
    return end - begin
