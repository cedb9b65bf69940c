"""Messages between a process and its decoder: a header in JSON and the bytes that it announces.

Nothing is pickled, so that a decoder that a hostile file has taken over can say no more than numbers and texts.
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct(">II")
"""The lengths of the header and of the bytes after it, as every message begins."""
FULL = 70
"""The exit status of a decoder for which a file alone is too large."""


def begin(header: dict[str, Any], size: int) -> bytes:
    """Return the beginning of a message, before its bytes."""
    text = json.dumps(header).encode()
    return LENGTH.pack(len(text), size) + text
