"""Every supported class is named by some test, or its function is."""

from __future__ import annotations

import re
from pathlib import Path

from serve_app.nodes.registry import BUILTIN

ONLY_IN_A_GRAPH = frozenset({"LoopUnrolled"})
"""Classes that another one alone puts into a graph, whose tests run them."""


def test_every_class_is_named_by_a_test() -> None:
    files = Path(__file__).parents[2].rglob("*.py")
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    # A name with a space or a sign is of several words.
    missing = {
        name
        for name, made in BUILTIN.items()
        if not set(re.findall(r"\w+", name)) <= words and getattr(made, made.FUNCTION).__name__ not in words  # type: ignore[attr-defined]
    }
    assert missing <= ONLY_IN_A_GRAPH, f"write a test of {sorted(missing - ONLY_IN_A_GRAPH)}"
