"""ImageScale and LatentUpscale against ComfyUI's own results on the same pixels and latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.images import resize

GOLDEN = np.load(Path(__file__).parent / "golden" / "mini15.npz")


def methods(kind: str) -> list[str]:
    return [key.split("|")[1] for key in GOLDEN.files if key.startswith(f"{kind}|")]


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    expected = torch.from_numpy(theirs)
    assert ours.shape == expected.shape
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", methods("image_scale"))
def test_images_resize_as_in_comfyui(method: str) -> None:
    ours = resize(torch.from_numpy(GOLDEN["vae|image"]), 96, 80, method, "center")
    assert relative_error(ours, GOLDEN[f"image_scale|{method}"]) <= 1e-6


@pytest.mark.parametrize("method", methods("latent_upscale"))
def test_latents_resize_as_in_comfyui(method: str) -> None:
    latents = torch.from_numpy(GOLDEN["vae|z"]).movedim(1, -1)
    ours = resize(latents, 12, 12, method).movedim(-1, 1)
    assert relative_error(ours, GOLDEN[f"latent_upscale|{method}"]) <= 1e-6
