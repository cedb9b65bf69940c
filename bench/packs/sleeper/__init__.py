"""A node pack whose node sleeps: a task that takes a slot for a known time and next to none of the machine."""

from __future__ import annotations

import asyncio
from typing import Any

from comfy.utils import ProgressBar  # made for packs


class Sleep:
    """Sleeps for so many seconds in so many steps, whose ends it tells, and shows how many seconds."""

    RETURN_TYPES = ()
    FUNCTION = "sleep"
    OUTPUT_NODE = True
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0}),
                "steps": ("INT", {"default": 1, "min": 1, "max": 1_000_000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
            }
        }

    async def sleep(self, seconds: float, steps: int, seed: int) -> dict[str, Any]:
        progress = None if steps == 1 else ProgressBar(steps)
        for _ in range(steps):
            await asyncio.sleep(seconds / steps)
            if progress is not None:
                progress.update(1)
        return {"ui": {"text": [f"{seconds:g}"]}}


NODE_CLASS_MAPPINGS = {"Sleep": Sleep}
