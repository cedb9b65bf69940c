"""Whole workflows against the latents that a ComfyUI beside us gave (golden/beside.npz, written by `beside`)."""

from __future__ import annotations

import pytest

from tests.parity.beside import Fixed, ours
from tests.parity.cases import CASES
from tests.parity.checkpoints import models_dir
from tests.parity.figures import Figures
from tests.parity.stack import Stack

FIGURES = Figures("beside")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15", "lora", "controlnet"), tmp_path_factory.mktemp("files"), {"Fixed": Fixed})
    yield stack
    stack.engine.close()


@pytest.mark.parametrize("name", [name for name in CASES if name in FIGURES.names])
async def test_a_workflow_gives_what_comfyui_gives(stack, name):
    FIGURES.assert_agrees(await ours(stack, CASES[name]), name)
