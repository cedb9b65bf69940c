"""What a card is predicted to take: forwards by the planner's counts and roofline, and the rest as one H100 was."""

from __future__ import annotations

import torch

from serve_app.models.forward_cost import ForwardCost
from serve_app.models.weights.memory_plan import PartPlan
from serve_app.models.weights.roofline import assumed_card, forward_s

OVER = 1.25
"""How much longer than the roofline a forward is to take at most."""

PREDICTED: dict[str, tuple[str, str]] = {
    "matmul 8192³, bf16": ("798 TFLOP/s", ""),
    "copy on the card": ("3.0 TB/s", ""),
    "SD 1.5, host asks for a forward": ("24.7 ms on a slow CPU", ""),
    "SDXL, host asks for a forward": ("48.9 ms on a slow CPU", ""),
    "SD 1.5, unequal texts over equal ones": ("1.1 or more", "1.0"),
    "VAE, decode of 512×512": ("8 to 13 ms", ""),
    "VAE, decode of 1024×1024": ("32 to 52 ms", ""),
    "VAE, memory of a megapixel": ("1536 MiB", ""),
    "weights from the host's memory": ("20 GB/s", ""),
    "context of another process": ("400 to 600 MiB", "600"),
    "SD 1.5, 8 LoRAs over none": ("1.03", ""),
    "SDXL, 8 LoRAs over none": ("1.03", ""),
    "SD 1.5, step of 1 job": ("18 to 26 ms, by the host", "6.5 ms"),
    "SD 1.5, images a second of 8 jobs, not decoded": ("6 to 7", ""),
    "SD 1.5, image of 1 job": ("0.47 to 0.65 s, 0.04 of it in a server", "0.22 s"),
    "SD 1.5, images a second of 8 jobs": ("6 to 7", "9"),
    "SD 1.5, euler, eight jobs over ComfyUI's speed": ("2.4 to 3.9", "3.5"),
    "SDXL, step of 1 job": ("48 to 60 ms", "36 ms"),
    "SDXL, images a second of 8 jobs, not decoded": ("1.05 to 1.20", ""),
    "SDXL, images a second of 8 jobs": ("1.05 to 1.20", "1.5"),
    "SDXL, loaded from the page cache beside another's job": ("1.5 to 3 s", "0.6 s"),
    "SDXL, longest step of that job over the usual": ("1.1: nobody stops", "1.1"),
    "SDXL, loaded by ComfyUI": ("2 to 4 s", ""),
    "SD 1.5, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SDXL, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SD 1.5, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
    "SDXL, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
}
"""By what is measured: what was predicted for one H100 before any was there, and the goal."""


def least_s(cost: ForwardCost, device: torch.device) -> float:
    """Return how many seconds a forward takes a device at least, by the speed that is assumed of it."""
    memory_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return forward_s(cost, PartPlan(0, 0), assumed_card(memory_bytes))


def at_least(seconds: float) -> str:
    """Return a prediction by the roofline."""
    return f"{1000 * seconds:.3g} ms at least"


def goal(seconds: float) -> str:
    """Return the goal of what takes so many seconds by the roofline."""
    return f"{1000 * OVER * seconds:.3g} ms"
