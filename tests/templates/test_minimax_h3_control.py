"""MiniMax H3 under its ControlNet over HTTP, with tiny files under the published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.nodes.video.value import VideoFromFile
from tests.templates.test_templates import prompt_of, ran, saved_of

SMALL = {"width": 64, "height": 32, "length": 5, "steps": 1}
"""The size of the video, and how often it is sampled."""


@pytest.mark.long  # parity.test_minimax_h3_control compares the network with ComfyUI, test_templates runs the rest
async def test_a_template_of_minimax_h3_follows_a_video_and_paints_within_a_mask(tmp_path: Path) -> None:
    prompt = prompt_of("video_minimax_h3_t2v")
    for node in prompt.values():
        for key, number in SMALL.items():
            if key in node["inputs"]:
                node["inputs"][key] = number
    [vae] = [key for key, node in prompt.items() if "video_vae" in str(node["inputs"].get("vae_name"))]
    patch = "minimax_h3_fun_controlnet_union_pruned_int8_convrot.safetensors"
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "file": ("LoadVideo", {"file": "dancer_field_pose.mp4"}),
        "images": ("GetVideoComponents", {"video": ["file", 0]}),
        "mask": ("SolidMask", {"value": 1.0, "width": 64, "height": 32}),
        "patch": ("ModelPatchLoader", {"name": patch}),
    }
    for key, node in list(prompt.items()):
        if node["class_type"] == "BasicGuider":
            shown = {"control_video": ["images", 0], "mask": ["mask", 0], "source_video": ["images", 0]}
            span = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
            inputs = {"model": node["inputs"]["model"], "model_patch": ["patch", 0], "vae": [vae, 0], **span, **shown}
            nodes[f"control {key}"] = ("MiniMaxH3FunControlNetApply", inputs)
            node["inputs"]["model"] = [f"control {key}", 0]
    for key, (kind, inputs) in nodes.items():
        prompt[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": key}}
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
        assert made.images.shape == (5, 32, 64, 3)
        assert (made.images[1:] - made.images[:-1]).abs().amax(dim=(1, 2, 3)).min() > 0, "it stands still"
