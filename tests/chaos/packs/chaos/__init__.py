"""A node pack of harmless nodes, of nodes that hang, and of poison: nodes that end, block or fill their replica."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections import Counter
from typing import Any, ClassVar

WAITED_S = 45.0
"""How long a node waits for others that are to run beside it."""


class Node:
    """What all of these have: they show something, and no two of different seeds are equal."""

    FUNCTION = "run"
    CATEGORY = "chaos"
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**53})}}


class ChaosText(Node):
    """Shows its seed as text."""

    def run(self, seed: int) -> dict[str, Any]:
        return {"ui": {"text": [str(seed)]}}


class ChaosShade(Node):
    """Takes a moment in the packs' thread and gives an image back darker."""

    OUTPUT_NODE = False
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**super().INPUT_TYPES()["required"], "image": ("IMAGE",)}}

    def run(self, seed: int, image: Any) -> tuple[Any]:
        time.sleep(0.05)
        return (image * (0.5 + seed % 50 / 100),)


class ChaosNap(Node):
    """Waits in the event loop, as a node that asks another server would."""

    async def run(self, seed: int) -> dict[str, Any]:
        for _ in range(10):
            await asyncio.sleep(0.05 * (1 + seed % 4))
        return {"ui": {"text": ["rested"]}}


class ChaosMeet(Node):
    """Ends once as many of one meeting run at the same time as are expected: proof that so many slots are free."""

    present: ClassVar[Counter[int]] = Counter()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        whole = ("INT", {"default": 1, "min": 1, "max": 2**53})
        return {"required": {**super().INPUT_TYPES()["required"], "meeting": whole, "expected": whole}}

    async def run(self, seed: int, meeting: int, expected: int) -> dict[str, Any]:
        self.present[meeting] += 1
        deadline = time.monotonic() + WAITED_S
        while self.present[meeting] < expected:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {self.present[meeting]} of {expected} met")
            await asyncio.sleep(0.05)
        return {"ui": {"text": [f"{expected} met"]}}


class PoisonExit(Node):
    def run(self, seed: int) -> dict[str, Any]:
        os._exit(3)


class PoisonSegfault(Node):
    def run(self, seed: int) -> dict[str, Any]:
        ctypes.string_at(0)
        raise AssertionError("address 0 can be read")


class PoisonSystemExit(Node):
    def run(self, seed: int) -> dict[str, Any]:
        sys.exit("poison")


class PoisonSystemExitAsync(Node):
    async def run(self, seed: int) -> dict[str, Any]:
        sys.exit("poison")


class PoisonKeyboardInterrupt(Node):
    def run(self, seed: int) -> dict[str, Any]:
        raise KeyboardInterrupt


class PoisonKeyboardInterruptAsync(Node):
    async def run(self, seed: int) -> dict[str, Any]:
        raise KeyboardInterrupt


class PoisonBlockedLoop(Node):
    async def run(self, seed: int) -> dict[str, Any]:
        time.sleep(1e6)
        return {}


class PoisonEndless(Node):
    def run(self, seed: int) -> dict[str, Any]:
        while True:
            time.sleep(0.01)


class PoisonMemory(Node):
    def run(self, seed: int) -> dict[str, Any]:
        taken = []
        while True:
            taken.append(b"x" * 2**26)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (
        ChaosText,
        ChaosShade,
        ChaosNap,
        ChaosMeet,
        PoisonExit,
        PoisonSegfault,
        PoisonSystemExit,
        PoisonSystemExitAsync,
        PoisonKeyboardInterrupt,
        PoisonKeyboardInterruptAsync,
        PoisonBlockedLoop,
        PoisonEndless,
        PoisonMemory,
    )
}
