"""A node pack whose node sleeps: a task that takes a slot for a known time and none of the machine."""

from __future__ import annotations

import asyncio
from typing import Any


class Sleep:
    """Sleeps for so many seconds, and shows how many."""

    RETURN_TYPES = ()
    FUNCTION = "sleep"
    OUTPUT_NODE = True
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
            }
        }

    async def sleep(self, seconds: float, seed: int) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"ui": {"text": [f"{seconds:g}"]}}


NODE_CLASS_MAPPINGS = {"Sleep": Sleep}
