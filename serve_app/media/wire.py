"""The protocol between a process and its decoder: messages of a JSON header and bytes.

Nothing is pickled, so that a compromised decoder can send numbers and texts only.
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct(">II")
"""The lengths of the header and of the bytes after it, as every message begins."""
FULL = 70
"""The exit status of a decoder whose memory limit the file itself exceeds."""


def begin(header: dict[str, Any], size: int) -> bytes:
    """Return the beginning of a message, before its bytes."""
    text = json.dumps(header).encode()
    return LENGTH.pack(len(text), size) + text
