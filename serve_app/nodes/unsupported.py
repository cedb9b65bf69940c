"""ComfyUI's node classes that this server has not, and why: `unsupported.toml`, as tables by class."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

PAID = "it calls a paid service on the internet"
"""Why there are no API nodes, as the file says."""

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def _reasons(table: str) -> dict[str, str]:
    return {name: entry["reason"] for entry in _TABLES[table] for name in entry["names"].split()}


UNSUPPORTED: Mapping[str, str] = _reasons("reference")
"""Why there is no such class of ComfyUI 0.33.0, in words that end a sentence, by its name."""
NOT_THERE: Mapping[str, str] = {**UNSUPPORTED, **_reasons("newer")}
"""The same, with the classes that came later."""
