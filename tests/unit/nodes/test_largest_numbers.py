"""Classes refuse too much before they make it, whatever numbers links bring (`largest_numbers`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest

from tests.unit.nodes.largest_numbers import VALUE_BYTES, of_numbers

CLASSES = [name for name, _ in of_numbers()]
TENSOR_BYTES = 3 * VALUE_BYTES
"""A node works with a few tensors of a size that is allowed."""
ARRAY_BYTES = 300_000
"""Python's own objects count among arrays."""
TABLES = {"Flux2Scheduler", "ModelSamplingFlux", "ModelSamplingLTXV"}
"""Classes that make a table of a fixed size."""


@pytest.fixture(scope="module")
def calls() -> dict[str, list[dict[str, Any]]]:
    """What each class made, by its name."""
    run = [sys.executable, "-m", "tests.unit.nodes.largest_numbers"]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    by_class = defaultdict(list)
    for line in ended.stdout.splitlines():
        call = json.loads(line)
        by_class[call["class"]].append(call)
    return by_class


@pytest.mark.parametrize("class_type", sorted(set(CLASSES) - TABLES))
def test_a_class_allocates_no_more_than_is_allowed_whatever_its_numbers(
    class_type: str, calls: dict[str, list[dict[str, Any]]]
) -> None:
    made = calls[class_type]
    assert made
    assert [call for call in made if call["tensor"] > TENSOR_BYTES or call["arrays"] > ARRAY_BYTES] == []
    assert [call for call in made if call["ended"] == "endless" or "emory" in call["ended"]] == []
