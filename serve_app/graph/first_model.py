"""The model that a workflow is listed with, where people see jobs as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SUFFIXES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth")


def first_model(prompt: Mapping[str, Any]) -> str:
    """Return the first model file that a workflow's inputs name; "" if they name none."""
    for node in prompt.values():
        for value in node.get("inputs", {}).values() if isinstance(node, dict) else ():
            if isinstance(value, str) and value.endswith(SUFFIXES):
                return value
    return ""
