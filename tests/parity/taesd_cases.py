"""A TAESD for SDXL, drawn from names, and what it is asked, here and of ComfyUI: golden/taesd.npz."""

from __future__ import annotations

from math import prod, sqrt
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families import Taesd
from serve_app.sampling.latents import latent_formats as formats
from tests.parity.cases import Case
from tests.parity.workflow import Nodes

LATENTS = ("Fixed", {"kind": "latent", "seed": 16, "shape": "1, 4, 4, 4"})
IMAGES = ("Fixed", {"kind": "image", "seed": 17, "shape": "1, 32, 32, 3"})
_LOADED: Nodes = {"vae": ("VAELoader", {"vae_name": "taesdxl"}), "latents": LATENTS, "images": IMAGES}
CASES: dict[str, Case] = {
    "decoded": Case({**_LOADED, "k": ("VAEDecode", {"vae": ["vae", 0], "samples": ["latents", 0]})}),
    "encoded": Case({**_LOADED, "k": ("VAEEncode", {"vae": ["vae", 0], "pixels": ["images", 0]})}),
}


def drawn(name: str, shape: torch.Size) -> Tensor:
    """Return a weight that depends on its name alone."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if len(shape) == 1:
        # Grey rather than black, so that few pixels are cut off.
        return 0.02 * normal + (0.5 if name == "decoder.19.bias" else 0)
    return 0.7 * normal / sqrt(prod(shape[1:]))


def write(models: Path) -> None:
    """Write both halves into models/vae_approx, as SDXL's and under another name."""
    (models / "vae_approx").mkdir()
    shapes = Taesd(formats.SDXL).empty().state_dict()
    for half in ("encoder", "decoder"):
        tensors = {n.removeprefix(f"{half}."): drawn(n, t.shape) for n, t in shapes.items() if n.startswith(half)}
        for family in ("taesdxl", "other"):
            save_file(tensors, models / "vae_approx" / f"{family}_{half}.safetensors")
