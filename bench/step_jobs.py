"""Jobs whose denoising step is counted. It needs Python alone, as ComfyUI's interpreter imports it too."""

from __future__ import annotations

from typing import NamedTuple


class StepJob(NamedTuple):
    """One job's forward. latents: (C,h,w) or (C,F,h,w). texts: the length of each row's text, in tokens.

    fp8: with weights in fp8 with a scale each, multiplied in fp8. part: the network has one in so many of its blocks.
    apart: each row has a forward of its own, as on a card whose flash attention takes no mask.
    """

    family: str
    latents: tuple[int, ...]
    texts: tuple[int, ...]
    fp8: bool = False
    part: int = 1
    apart: bool = False


JOBS = {
    "SD 1.5, 512×512, cfg": StepJob("sd15", (4, 64, 64), (77, 77)),
    "SDXL, 1024×1024, cfg": StepJob("sdxl", (4, 128, 128), (77, 77)),
    "Z-Image turbo, 1024×1024": StepJob("zimage", (16, 128, 128), (96,)),
    "Flux.1 dev bf16, 1024×1024": StepJob("flux", (16, 128, 128), (512,)),
    "Flux.1 dev fp8 scaled, 1024×1024": StepJob("flux", (16, 128, 128), (512,), fp8=True),
    "Qwen-Image, 1328×1328, cfg": StepJob("qwen", (16, 1, 166, 166), (60, 20)),
    "Qwen-Image, 1328×1328, cfg, on Ampere and Ada": StepJob("qwen", (16, 1, 166, 166), (60, 20), apart=True),
    "Wan 2.1 14B, 832×480, 81 frames, cfg": StepJob("wan", (16, 21, 60, 104), (512, 512)),
}

_FEW = {
    "Flux.1 dev bf16, 1024×1024": 4,
    "Flux.1 dev fp8 scaled, 1024×1024": 4,
    "Qwen-Image, 1328×1328, cfg": 6,
    "Qwen-Image, 1328×1328, cfg, on Ampere and Ada": 6,
    "Wan 2.1 14B, 832×480, 81 frames, cfg": 4,
}
GPU_JOBS = {f"{title}, 1/{part} of its blocks": JOBS[title]._replace(part=part) for title, part in _FEW.items()}
"""Those that a GPU measures, with few enough blocks for 24 GB."""
SMALL_JOBS = {
    "Flux.1, small": StepJob("flux", (16, 8, 8), (16,), part=19),
    "Flux.1 fp8 scaled, small": StepJob("flux", (16, 8, 8), (16,), fp8=True, part=19),
    "Qwen-Image, small": StepJob("qwen", (16, 1, 8, 8), (16, 8), part=60),
    "Qwen-Image, small, each text apart": StepJob("qwen", (16, 1, 8, 8), (16, 8), part=60, apart=True),
    "Wan, small": StepJob("wan", (16, 2, 8, 8), (16, 16), part=40),
}
"""Those that show on any machine that measuring works."""
