"""A node pack whose node tells its client the time, again and again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from server import PromptServer  # type: ignore[import-not-found]  # made for packs


class Ticker:
    """Sends so many messages to the client of its job, at so many seconds from each other."""

    RETURN_TYPES = ()
    FUNCTION = "tick"
    OUTPUT_NODE = True
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "count": ("INT", {"default": 1, "min": 1, "max": 1_000_000}),
                "interval_s": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 10.0}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
            }
        }

    async def tick(self, count: int, interval_s: float, seed: int) -> tuple[()]:
        server = PromptServer.instance
        for _ in range(count):
            # This clock is the same in every process of a machine.
            server.send_sync("tick", {"at_s": time.monotonic()}, server.client_id)
            await asyncio.sleep(interval_s)
        return ()


NODE_CLASS_MAPPINGS = {"Ticker": Ticker}
