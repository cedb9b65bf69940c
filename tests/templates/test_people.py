"""Templates of SAM 3, Wan Animate 2 and a Wan that works block by block, over HTTP, with tiny files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.nodes.video.value import VideoFromFile
from tests.templates.test_templates import cut, prompt_of, ran, shrink

VIDEOS = (
    "video_causal_forcing_i2v",
    "video_wan_animate2",
    "video_wan_animate2_distilled",
    "video_wan21_scail2_character_replacement",
    "video_wan_vace_inpainting",
)
FRAGMENT = 9
"""Images that an iteration of a loop makes; the last makes what is left."""


def small(name: str) -> dict[str, Any]:
    """Return a template's workflow of a small, short video; of two in one, both; of a loop, in three iterations."""
    prompt = prompt_of(name)
    cut(prompt)
    shrink(prompt)
    for node in prompt.values():
        for key in ("resize_type.width", "resize_type.height"):
            if isinstance(node["inputs"].get(key), int):
                node["inputs"][key] = 64
        if node["_meta"]["title"] == "Int (fragment_length)":
            node["inputs"]["value"] = FRAGMENT
        if node["class_type"] == "ContextWindowsManual":
            node["inputs"] |= {"context_length": 4, "context_overlap": 2}
    return prompt


async def test_a_template_shows_what_a_text_names_in_an_image(tmp_path: Path) -> None:
    async with ran(prompt_of("utility_image_segment_sam3"), tmp_path) as (client, outputs):
        shown = [image for output in outputs.values() for image in output["images"]]
        assert len(shown) == 2
        for image in shown:
            picture = await client.get("/api/view", params=image)
            with Image.open(io.BytesIO(picture.content)) as opened:
                assert opened.size == (256, 256)


@pytest.mark.long  # the networks, windows and loops of it have tests of their own: parity, engine, test_loops
@pytest.mark.parametrize("name", VIDEOS)
async def test_a_template_makes_a_video_of_someone(name: str, tmp_path: Path) -> None:
    async with ran(small(name), tmp_path) as (client, outputs):
        saved = [
            video for output in outputs.values() for video in output.get("images", ()) if video["type"] == "output"
        ]
        assert saved
        for one in saved:
            made = VideoFromFile((await client.get("/api/view", params=one)).content).get_components()
            assert made.images.std() > 0.01, "it is of one colour"
