"""Patches of layers and guidance, reused steps and hooks give ComfyUI 0.33.0's values on small networks.

golden/patch_runs.npz holds what ComfyUI's own nodes make of the workflows in `patch_cases`, by `make_figures`.
"""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.values import Recipe
from tests.parity.beside import ours, relative_error
from tests.parity.figures import GOLDEN, TOLERANCE
from tests.parity.patch_cases import PATCHES, models
from tests.parity.stack import Stack

FIGURES = dict(np.load(GOLDEN / "patch_runs.npz"))


class SmallModel:
    """A MODEL of a file of a backbone alone."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING",)}}

    def get(self, name):
        return (Recipe("backbone", "checkpoints", name),)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models(), tmp_path_factory.mktemp("files"), {"SmallModel": SmallModel})
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure():
    assert PATCHES.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", PATCHES)
async def test_a_workflow_gives_comfyuis_value(stack, name):
    assert relative_error(await ours(stack, PATCHES[name]), FIGURES[name]) < TOLERANCE
