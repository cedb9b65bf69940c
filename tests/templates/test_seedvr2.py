"""Templates of SeedVR2 over HTTP, with tiny files under the published names: a picture and a video made sharp."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from serve_app.nodes.video.value import VideoFromFile
from tests.templates.test_templates import prompt_of, ran, saved_of

SCALE = 0.5
"""By how much pictures are enlarged here: the templates' own sizes take minutes."""
PICTURES = ("utility_seedvr2_7b_int8_upscale_image", "utility_seedvr2_3b_int8_upscale_image")


def resize(prompt: dict[str, dict[str, object]]) -> None:
    for node in prompt.values():
        inputs = node["inputs"]
        assert isinstance(inputs, dict)
        if "resize_type.multiplier" in inputs:
            inputs["resize_type.multiplier"] = SCALE


@pytest.mark.parametrize("name", [PICTURES[0], pytest.param(PICTURES[1], marks=pytest.mark.long)])
async def test_a_template_makes_a_picture_sharp(name: str, tmp_path: Path) -> None:
    prompt = prompt_of(name)
    resize(prompt)
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        picture = await client.get("/api/view", params=saved)
        with Image.open(io.BytesIO(picture.content)) as image:
            assert image.size == (128, 128)
            assert image.mode == "RGBA", "the alpha channel is lost"
            assert len(image.convert("L").getcolors(256) or ()) > 8, "it is of one colour"


@pytest.mark.long  # parity.test_seedvr2 has a workflow of parts
async def test_a_template_makes_a_video_sharp_in_parts(tmp_path: Path) -> None:
    prompt = prompt_of("utility_seedvr2_3b_int8_upscale_video")
    resize(prompt)
    for node in prompt.values():
        if node["class_type"] == "SeedVR2TemporalChunk":
            node["inputs"] |= {"chunking_mode": "manual", "chunking_mode.frames_per_chunk": 13, "temporal_overlap": 1}
        if node["class_type"] == "PrimitiveBoolean":
            node["inputs"]["value"] = True
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    assert made.images.shape == (20, 32, 32, 3)
    assert made.images.std() > 0.01, "it is of one colour"
