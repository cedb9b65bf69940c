"""ComfyUI's latents and pixels on the mini15 checkpoint, reached through the nodes of a workflow.

Its samplers are compared in `test_beside`.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.store.store import FileRef
from tests.parity.checkpoints import models_dir
from tests.parity.figures import Figures
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, ENCODED, LINKS, Nodes, ksampler, models

FIGURES = Figures("mini15")
MODELS = models("mini15")


class FigureImage:
    """The image that ComfyUI was given; its values are finer than those of an image file."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get(self):
        return (FIGURES["vae|image"],)


MASK: Nodes = {
    "outside": ("SolidMask", {"value": 0.0, "width": 64, "height": 64}),
    "inside": ("SolidMask", {"value": 1.0, "width": 32, "height": 32}),
    "mask": (
        "MaskComposite",
        {"destination": ["outside", 0], "source": ["inside", 0], "x": 16, "y": 16, "operation": "add"},
    ),
}
"""The middle of the image."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15"), tmp_path_factory.mktemp("files"), {"FigureImage": FigureImage})
    yield stack
    stack.engine.close()


async def test_a_cfg_of_one_gives_comfyuis_latents(stack):
    latent = await stack.run("sampled", **MODELS, **EMPTY, sampled=ksampler("cfg1|euler|karras|4|1.0|36"))
    FIGURES.assert_agrees(latent["samples"], "cfg1")


async def test_image_to_image_gives_comfyuis_latents(stack):
    figure = "img2img|euler|karras|6|5.0|21|0.6"
    latent = await stack.run("sampled", **MODELS, **ENCODED, sampled=ksampler(figure))
    FIGURES.assert_agrees(latent["samples"], figure)


async def test_a_masked_latent_is_inpainted_as_by_comfyui(stack):
    figure = "inpaint_setmask|dpmpp_2m|karras|6|5.0|22|1.0"
    masked = {"masked": ("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["mask", 0]})}
    sampled = ksampler(figure, latent_image=["masked", 0])
    latent = await stack.run("sampled", **MODELS, **ENCODED, **MASK, **masked, sampled=sampled)
    FIGURES.assert_agrees(latent["samples"], figure)


async def test_a_latent_encoded_for_inpainting_is_sampled_as_by_comfyui(stack):
    figure = "inpaint_vae|euler|normal|5|5.0|23|1.0"
    inputs = {"pixels": ["image", 0], "vae": ["checkpoint", 2], "mask": ["mask", 0], "grow_mask_by": 6}
    encoded = {"image": ENCODED["image"], "latent": ("VAEEncodeForInpaint", inputs)}
    masked = await stack.run("latent", **MODELS, **MASK, **encoded)
    FIGURES.assert_agrees(masked["samples"], "inpaint_vae|latent")
    assert torch.equal(masked["noise_mask"], FIGURES["inpaint_vae|mask"])
    latent = await stack.run("sampled", **MODELS, **MASK, **encoded, sampled=ksampler(figure))
    FIGURES.assert_agrees(latent["samples"], figure)


async def test_a_window_of_steps_gives_comfyuis_latents(stack):
    settings = {
        "add_noise": "enable",
        "noise_seed": 38,
        "steps": 8,
        "cfg": 5.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "start_at_step": 2,
        "end_at_step": 6,
        "return_with_leftover_noise": "enable",
    }
    latent = await stack.run("sampled", **MODELS, **EMPTY, sampled=("KSamplerAdvanced", {**LINKS, **settings}))
    FIGURES.assert_agrees(latent["samples"], "advanced")


async def test_a_saved_image_has_comfyuis_pixels_within_one(stack):
    figure = "image|dpmpp_2m|karras|6|5.0|61"
    decoded = {"decoded": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["checkpoint", 2]})}
    saved = {"saved": ("SaveImage", {"images": ["decoded", 0], "filename_prefix": "parity"})}
    ui = await stack.run("saved", **MODELS, **EMPTY, sampled=ksampler(figure), **decoded, **saved)
    [file] = ui["images"]
    with stack.volume.open(FileRef("output", file["subfolder"], file["filename"])) as png:
        pixels = np.asarray(Image.open(io.BytesIO(png.read())))
    difference = pixels.astype(int) - FIGURES[figure].numpy().astype(int)
    assert np.abs(difference).max() <= 1
