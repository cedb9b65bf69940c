"""Whole workflows against what a ComfyUI beside us made of them (golden/beside.npz, written by `beside`)."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from serve_app.store.store import FileRef
from tests.parity.beside import OWN, WORKFLOWS, ours
from tests.parity.figures import Figures
from tests.parity.patch_cases import models
from tests.parity.stack import Stack

FIGURES = Figures("beside")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models(), tmp_path_factory.mktemp("files"), OWN)
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure():
    assert set(FIGURES.names) == WORKFLOWS.keys()


@pytest.mark.parametrize("name", WORKFLOWS)
async def test_a_workflow_gives_what_comfyui_gives(stack, name):
    FIGURES.assert_agrees(await ours(stack, WORKFLOWS[name]), name)


async def test_a_saved_image_has_comfyuis_pixels_within_one(stack):
    saved = {"saved": ("SaveImage", {"images": ["decoded", 0], "filename_prefix": "parity"})}
    ui = await stack.run("saved", **WORKFLOWS["image|decoded"].nodes, **saved)
    [file] = ui["images"]
    with stack.volume.open(FileRef("output", file["subfolder"], file["filename"])) as png:
        pixels = np.asarray(Image.open(io.BytesIO(png.read())))
    theirs = (FIGURES["image|decoded"][0].numpy() * 255).clip(0, 255).astype(np.uint8)
    assert np.abs(pixels.astype(int) - theirs.astype(int)).max() <= 1
