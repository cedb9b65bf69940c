"""Tensors of a device that are made from numbers of the host: only by `to_device`, whose copies nothing waits for."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path("serve_app")
MAKERS = {"tensor", "as_tensor", "asarray"}
PACKS = SOURCE / "packs"
"""Their modules answer as ComfyUI's do, in nodes' threads."""
IMAGES = {"images.py"}
"""An image is prepared on the host, where nodes have it."""


def test_no_forward_copies_numbers_from_memory_that_the_host_has_to_wait_for() -> None:
    """Such a copy cannot be captured as a graph, and waits for all forwards that are enqueued."""
    found = [
        f"{path}:{call.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not path.is_relative_to(PACKS) and path.name not in IMAGES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in MAKERS
        and any(keyword.arg == "device" for keyword in call.keywords)
    ]
    assert found == []
