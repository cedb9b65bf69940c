"""The one escaper of text that others wrote, before it reaches a terminal or a log line.

A request's path, a file's name or an error that quotes them may have line breaks, terminal control sequences (ECMA-48)
or marks that turn the direction of text (UAX #9), by which one line passes for another.
"""

from __future__ import annotations

import struct


def printable(text: str) -> str:
    r"""Return text on one line, with what is not printable as \uXXXX, so that JSON stays JSON with the same meaning."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{unit:04x}" for (unit,) in struct.iter_unpack(">H", units))
