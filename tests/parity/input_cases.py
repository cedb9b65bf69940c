"""What UNets are told beside text and x, here and of ComfyUI: golden/inputs.npz has its answers, and the arrays."""

from __future__ import annotations

SIZE = {"width": 768, "height": 512}
"""Of the latents in pixels, which the model is told where an option says no other."""
SIZES = {"width": 1000, "height": 1200, "crop_w": 3, "crop_h": 5}

VECTORS: list[tuple[str, str, dict[str, float]]] = [
    ("sdxl|default", "positive", {}),
    ("sdxl|all", "negative", {**SIZES, "target_width": 700, "target_height": 4096}),
    ("refiner|positive", "positive", {}),
    ("refiner|negative", "negative", {}),
    ("refiner|score", "negative", {**SIZES, "aesthetic_score": 7.25}),
]
"""A figure's name, the branch, and what the model is told of sizes."""
CONCATS: list[tuple[str, dict[str, str], str | None]] = [
    ("inpaint|nothing", {}, None),
    ("inpaint|denoise mask", {}, "dmask"),
    ("inpaint|options", {"concat_mask": "mask", "concat_latent_image": "image"}, "dmask"),
    ("edit|nothing", {}, None),
    ("edit|image", {"concat_latent_image": "image"}, None),
    ("edit|scaled", {"concat_latent_image": "image"}, None),
]
"""A figure's name, the options by what they hold of the file, and the mask of the run."""
