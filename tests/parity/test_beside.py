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


AGAIN = {
    *("conditioning|area over the edge", "conditioning|area alone", "conditioning|percentage", "conditioning|mask"),
    *("conditioning|strength", "conditioning|a range that leaves a gap", "control|chain", "image|decoded"),
    *("patch|differential half", "patch|freeu", "patch|tangential", "patch|several", "patch|operation"),
    *("guider|perp 3.0 0.8 euler_cfg_pp", "guider|perp 4.0 0.0 euler", "guider|dual regular 3.0 1.0 euler_cfg_pp"),
    *("guider|dual nested 4.0 2.0 euler", "guider|cfg", "guider|no noise", "clip|scheduled", "clip|skip 3"),
    *("options|2s ancestral", "options|euler ancestral", "options|lms", "options|er sde", "options|3m sde"),
    *("options|2m sde heun", "latent|not square", "latent|one of a batch", "latent|partial denoise"),
    *("lora|twice, once negative", "boxes|one", "boxes|several", "sampler|dpm_adaptive exponential"),
    *("training|x0", "training|v", "training|continuous v", "training|edm", "inpaint|differential"),
    *("reuse|EasyCache 0.05", "reuse|LazyCache 1.0", "reuse|LazyCache cfg++"),
}
"""Workflows that another of their group is like, or whose formula a test on small tensors compares too: of samplers and
their options, of models' sampling, of areas and masks on a flow. The long form runs them.
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models(), tmp_path_factory.mktemp("files"), OWN)
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure():
    assert set(FIGURES.names) == WORKFLOWS.keys()
    assert WORKFLOWS.keys() >= AGAIN


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in AGAIN else name for name in WORKFLOWS]
)
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
