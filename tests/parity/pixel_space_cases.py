"""What `pixel_space` of VAELoader is asked, here and of ComfyUI: golden/pixel_space.npz."""

from __future__ import annotations

from tests.parity.cases import Case
from tests.parity.workflow import Nodes

LATENTS = ("Fixed", {"kind": "latent", "seed": 26, "shape": "2, 3, 24, 40"})
FOUR = ("Fixed", {"kind": "latent", "seed": 27, "shape": "1, 4, 6, 5"})
IMAGES = ("Fixed", {"kind": "image", "seed": 28, "shape": "2, 72, 97, 3"})
ALPHA = ("Fixed", {"kind": "image", "seed": 29, "shape": "1, 5, 7, 4"})
_TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
_LOADED: Nodes = {
    "vae": ("VAELoader", {"vae_name": "pixel_space"}),
    "latents": LATENTS,
    "four": FOUR,
    "images": IMAGES,
    "alpha": ALPHA,
}


def _case(class_type: str, **inputs: object) -> Case:
    return Case({**_LOADED, "k": (class_type, {"vae": ["vae", 0], **inputs})})


CASES: dict[str, Case] = {
    "decoded": _case("VAEDecode", samples=["latents", 0]),
    "decoded of four channels": _case("VAEDecode", samples=["four", 0]),
    "decoded in tiles": _case("VAEDecodeTiled", samples=["latents", 0], **_TILES),
    "encoded": _case("VAEEncode", pixels=["images", 0]),
    "encoded of four channels": _case("VAEEncode", pixels=["alpha", 0]),
    "encoded in tiles": _case("VAEEncodeTiled", pixels=["images", 0], **_TILES),
}
