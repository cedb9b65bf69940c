"""Flux.2's autoencoder against ComfyUI's, with the same weights, in float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.models.families import Flux2Vae
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import move_to
from tests.parity.dit_cases import autoencoder, noise
from tests.parity.figures import GOLDEN, Figures

FIGURES = Figures("dit")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())["flux2_vae"]


@torch.inference_mode()
def test_images_and_latents_are_comfyuis(tmp_path: Path) -> None:
    save_file(autoencoder(KEYS), tmp_path / "vae.safetensors")
    family, network = Checkpoint(tmp_path / "vae.safetensors").load("vae")
    assert isinstance(family, Flux2Vae)
    assert (family.latent_channels, family.factor, family.decoder_channels) == (16, 4, (32, 32))
    move_to(network, torch.device("cpu"), torch.float32)
    FIGURES.assert_agrees(family.decode(network, noise("vae latents", (2, 16, 3, 4))), "vae decoded", 1e-5)
    FIGURES.assert_agrees(family.encode(network, noise("vae pixels", (2, 3, 8, 12))), "vae encoded", 1e-5)
