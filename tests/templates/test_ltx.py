"""Templates of LTX-2 over HTTP, with tiny files under the published names: videos with their sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.nodes.video.value import VideoFromFile
from tests.templates.test_templates import prompt_of, ran, saved_of, shrink

SIDE, SECONDS = 128, 1
CUT = {
    **dict.fromkeys(("Width", "Height", "height"), SIDE),
    **dict.fromkeys(("Duration", "Int (duration)"), SECONDS),
    "Frame Count": 25,
}
"""How large and long videos are made here, by the titles of the nodes that say it."""
TEMPLATES = {
    "video_ltx2_3_ia2v": 24,
    "video_ltx2_3_flf2v": 25,
    "video_ltx2_t2v_distilled": 24,
    "video_ltx2_3_i2v": 25,
    "video_ltx2_3_t2v": 25,
    "video_ltx2_3_id_lora": 25,
    "video_ltx2_i2v": 24,
    "video_ltx2_canny_to_video": 24,
    "video_ltx2_5_i2v": 24,
    "video_ltx2_5_t2v": 24,
    "video_ltx2_5_flf2v": 24,
}
"""Templates, and their images a second."""
USUAL = "video_ltx2_t2v_distilled"
"""Of LTX-2.0, enlarged by its upscaler. What the others have besides is in workflows of `parity.test_ltx_workflows`:
images, a sound, LTX-2.3 and 2.5; a prompt that a text encoder writes is in `parity.test_generation`.
"""


def small_prompt(name: str) -> dict[str, Any]:
    """Return a template's workflow of a small, short video."""
    prompt = prompt_of(name)
    shrink(prompt)
    for node in prompt.values():
        if (title := node["_meta"]["title"]) in CUT and is_number(prompt, node["inputs"]["value"]):
            node["inputs"]["value"] = CUT[title]
        if node["class_type"] == "EmptyImage":
            node["inputs"] |= {"width": SIDE, "height": SIDE}
    return prompt


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == USUAL else pytest.mark.long) for name in TEMPLATES]
)
async def test_a_template_of_ltx_makes_its_video_with_sound(name: str, tmp_path: Path) -> None:
    async with ran(small_prompt(name), tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    rate = TEMPLATES[name]
    assert made.images.shape == (rate * SECONDS // 8 * 8 + 1, SIDE, SIDE, 3)
    assert made.frame_rate == rate
    assert made.images.std() > 0.01, "it is of one colour"
    assert made.audio is not None
    heard = made.audio["waveform"]
    assert heard.shape[1] == 2
    # An encoder fills the last packet up.
    assert abs(heard.shape[2] / made.audio["sample_rate"] - SECONDS) < 0.15
    assert heard.std() > 0.01, "it is silent"


def is_number(prompt: dict[str, Any], value: Any) -> bool:
    """Whether an input is given as a number, or by the node where a person chooses a resolution."""
    return not isinstance(value, list) or prompt[value[0]]["class_type"] == "ResolutionSelector"
