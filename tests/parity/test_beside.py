"""Whole workflows against what a ComfyUI beside us made of them (golden/beside.npz, written by `beside`)."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from serve_app.store.files.store import FileRef
from tests.parity.beside import OWN, WORKFLOWS, ours
from tests.parity.figures import TOLERANCE, Figures
from tests.parity.patch_cases import models
from tests.parity.stack import Stack

FIGURES = Figures("beside")
TIES = {"training|lcm": 1e-3}
"""What workflows may be off that step on levels half-way between two that a model knows: the last bit of a logarithm,
which differs between processors, decides which of the two it is told."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models(), tmp_path_factory.mktemp("files"), OWN)
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure():
    assert set(FIGURES.names) == WORKFLOWS.keys()


@pytest.mark.parametrize("name", WORKFLOWS)
async def test_a_workflow_gives_what_comfyui_gives(stack, name):
    FIGURES.assert_agrees(await ours(stack, WORKFLOWS[name]), name, TIES.get(name, TOLERANCE))


async def test_a_saved_image_has_comfyuis_pixels_within_one(stack):
    saved = {"saved": ("SaveImage", {"images": ["decoded", 0], "filename_prefix": "parity"})}
    ui = await stack.run("saved", **WORKFLOWS["image|decoded"].nodes, **saved)
    [file] = ui["images"]
    with stack.volume.open(FileRef("output", file["subfolder"], file["filename"])) as png:
        pixels = np.asarray(Image.open(io.BytesIO(png.read())))
    theirs = (FIGURES["image|decoded"][0].numpy() * 255).clip(0, 255).astype(np.uint8)
    assert np.abs(pixels.astype(int) - theirs.astype(int)).max() <= 1
