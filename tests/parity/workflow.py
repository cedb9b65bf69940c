"""The nodes of the workflows that ComfyUI's figures were made with."""

from __future__ import annotations

from typing import Any, TypeAlias

from tests.parity.figures import PROMPTS

Nodes: TypeAlias = dict[str, tuple[str, dict[str, Any]]]

EMPTY: Nodes = {"latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1})}
ENCODED: Nodes = {
    "image": ("FigureImage", {}),
    "latent": ("VAEEncode", {"pixels": ["image", 0], "vae": ["checkpoint", 2]}),
}
LINKS: dict[str, Any] = {
    "model": ["checkpoint", 0],
    "positive": ["positive", 0],
    "negative": ["negative", 0],
    "latent_image": ["latent", 0],
}
"""What a KSampler of either kind is connected to."""


def models(name: str) -> Nodes:
    """Return the nodes that load a checkpoint and encode both texts with it."""
    return {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": f"{name}.safetensors"}),
        "positive": ("CLIPTextEncode", {"text": PROMPTS[1], "clip": ["checkpoint", 1]}),
        "negative": ("CLIPTextEncode", {"text": PROMPTS[2], "clip": ["checkpoint", 1]}),
    }


def ksampler(figure: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return the KSampler that a figure's name describes: …|sampler|schedule|steps|cfg|seed or …|seed|denoise."""
    _, sampler, schedule, steps, cfg, seed, *rest = figure.split("|")
    settings = {"sampler_name": sampler, "scheduler": schedule, "steps": int(steps), "cfg": float(cfg)}
    return ("KSampler", {**LINKS, **settings, "seed": int(seed), "denoise": float(rest[0]) if rest else 1.0, **changes})
