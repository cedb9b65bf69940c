"""Wan's workflows beside ComfyUI's: golden/wan_workflows.npz holds what its nodes make of those in `wan_workflows`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.parity import wan_workflows
from tests.parity.beside import Fixed, ours
from tests.parity.figures import GOLDEN, TOLERANCE, thinned
from tests.parity.stack import Stack

FIGURES = dict(np.load(GOLDEN / "wan_workflows.npz"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = tmp_path_factory.mktemp("models")
    wan_workflows.write(models)
    stack = Stack(models, tmp_path_factory.mktemp("files"), {"Fixed": Fixed})
    yield stack
    stack.engine.close()


@pytest.mark.parametrize("name", wan_workflows.WORKFLOWS)
async def test_a_workflow_of_wan_gives_comfyuis_values(stack: Stack, name: str) -> None:
    found, theirs = thinned((await ours(stack, wan_workflows.WORKFLOWS[name])).numpy()), FIGURES[name]
    assert found.shape == theirs.shape
    assert np.linalg.norm(found - theirs) / np.linalg.norm(theirs) < TOLERANCE
