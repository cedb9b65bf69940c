"""LTX-2's workflows beside ComfyUI's: golden/ltx_workflows.npz holds what its nodes make of `ltx_workflows`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.parity import ltx_workflows
from tests.parity.beside import Fixed, ours
from tests.parity.figures import GOLDEN, TOLERANCE, thinned
from tests.parity.stack import Stack

FIGURES = dict(np.load(GOLDEN / "ltx_workflows.npz"))
ROUNDED = dict.fromkeys(("a sound", "a quieter sound"), 5e-3)
"""Tolerances of what a random vocoder rounds: ComfyUI's sound is 1.1e-3 from what it makes of the same in float64."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = tmp_path_factory.mktemp("models")
    ltx_workflows.write(models)
    stack = Stack(models, tmp_path_factory.mktemp("files"), {"Fixed": Fixed})
    yield stack
    stack.engine.close()


@pytest.mark.parametrize("name", ltx_workflows.WORKFLOWS)
async def test_a_workflow_of_ltx_gives_comfyuis_values(stack: Stack, name: str) -> None:
    found, theirs = thinned((await ours(stack, ltx_workflows.WORKFLOWS[name])).numpy()), FIGURES[name]
    assert found.shape == theirs.shape
    assert np.linalg.norm(found - theirs) / np.linalg.norm(theirs) < ROUNDED.get(name, TOLERANCE)
