"""The files of `taehv_cases`, and the families that they are found as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from serve_app.models.families import TaeH3, Taehv
from serve_app.sampling.latents import latent_formats as formats
from tests.parity.taehv_cases import LAYOUTS, tensors

QUARTERS, EIGHTHS = ((2, 2, 1), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))
FAMILIES: Mapping[str, Taehv] = {
    "taehv": Taehv(16, 1, *QUARTERS, scaled_for=formats.HUNYUAN_VIDEO),
    "lighttaew2_1": Taehv(16, 1, *QUARTERS),
    "lighttaew2_2": Taehv(48, 2, *QUARTERS),
    "lighttaehy1_5": Taehv(32, 2, *QUARTERS, scaled_for=formats.HUNYUAN_VIDEO_15),
    "taeltx_2": Taehv(128, 4, *EIGHTHS),
    "taeh3": TaeH3(24, 2, *QUARTERS),
}


def write(models: Path, name: str) -> None:
    """Write a layout's file into models/vae_approx."""
    folder = models / "vae_approx"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {key: t.shape for key, t in FAMILIES[name].empty().state_dict().items()}
    save_file(tensors(LAYOUTS[name], shapes), folder / f"{name}.safetensors")
