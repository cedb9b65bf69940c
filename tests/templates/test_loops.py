"""A loop over HTTP saves an image in each of its iterations, in their order; one that is not closed is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from tests.templates.test_templates import ran, saved_of


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


async def test_a_loop_saves_an_image_in_each_iteration(tmp_path: Path) -> None:
    prompt = {
        "start": node("StartLoop", **{"mode": "simple", "mode.num_iterations": 3, "cache_iterations": False}),
        "colour": node("ComfyMathExpression", **{"expression": "a * 100 + 20", "values.a": ["start", 0]}),
        "image": node("EmptyImage", width=16, height=16, batch_size=1, color=["colour", 1]),
        "save": node("SaveImage", images=["image", 0], filename_prefix="loop"),
        "end": node("EndLoop", **{"accumulate": False, "terminations.termination0": ["save", 0]}),
    }
    async with ran(prompt, tmp_path) as (client, outputs):
        blue = {}
        for saved in saved_of(outputs):
            picture = await client.get("/api/view", params=saved)
            with Image.open(io.BytesIO(picture.content)) as image:
                blue[saved["filename"]] = image.getpixel((0, 0))
        assert blue == {f"loop_{number + 1:05}_.png": (0, 0, number * 100 + 20) for number in range(3)}
        del prompt["end"]
        refused = await client.post("/api/prompt", json={"prompt": prompt})
        assert refused.status_code == 400
        assert "no End Loop closes it" in refused.text
