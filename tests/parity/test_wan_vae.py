"""The autoencoder of Wan 2.1 and Qwen-Image against ComfyUI's, with the same weights, in float32."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from serve_app.models.families import WanVae
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.vae import Vae
from serve_app.values import Tiling
from tests.parity.dit_cases import FRAMES, noise, weights
from tests.parity.figures import GOLDEN, Figures

FIGURES = Figures("dit")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())["wan_vae"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Vae:
    path = tmp_path_factory.mktemp("wan") / "vae.safetensors"
    save_file(weights(KEYS), path)
    family, network = Checkpoint(path).load("vae")
    assert isinstance(family, WanVae)
    return Vae(family, network)


@torch.inference_mode()
@pytest.mark.parametrize("frames", FRAMES)
def test_videos_and_latents_are_comfyuis(vae: Vae, frames: int) -> None:
    family, network = vae.family, vae.network
    latents = family.encode(network, noise("wan pixels", (1, 4, frames, 24, 16)))
    FIGURES.assert_agrees(latents, f"wan {frames} encoded", 1e-5)
    expected = FIGURES[f"wan {frames} decoded"]
    torch.testing.assert_close(family.decode(network, latents), expected, rtol=1e-5, atol=1e-5)


def test_its_sizes_are_read_off_its_file(vae: Vae) -> None:
    assert vae.family == WanVae(8, latent_channels=16, image_channels=4)
    assert vae.family.factor == 8


@torch.inference_mode()
def test_images_are_one_video_and_a_latent_stands_for_four(vae: Vae) -> None:
    images = noise("wan images", (6, 24, 17, 3)).sigmoid()
    latents = vae.encode(images)
    assert latents.shape == (1, 16, 2, 3, 2)
    torch.testing.assert_close(latents[:, :, :1], vae.encode(images[:1]), rtol=1e-4, atol=1e-5)
    assert vae.decode(latents).shape == (1, 5, 24, 16, 4)


@torch.inference_mode()
def test_images_that_say_nothing_of_it_are_opaque(vae: Vae) -> None:
    images = noise("wan images", (1, 24, 16, 3)).sigmoid()
    opaque = torch.cat([images, torch.ones(1, 24, 16, 1)], dim=-1)
    assert torch.equal(vae.encode(images), vae.encode(opaque))
    assert not torch.equal(vae.encode(images), vae.encode(opaque / 2))


@torch.inference_mode()
def test_latents_without_time_are_of_one_frame(vae: Vae) -> None:
    latents = noise("wan latents", (2, 16, 3, 2))
    assert torch.equal(vae.decode(latents), vae.decode(latents[:, :, None]))


@torch.inference_mode()
def test_tiles_go_through_all_frames(vae: Vae) -> None:
    latents, images = noise("wan latents", (2, 16, 2, 12, 8)), noise("wan video", (5, 96, 64, 4)).sigmoid()
    for tiled, whole in (
        (vae.decode_tiled(latents, Tiling(512, 64)), vae.decode(latents)),
        (vae.encode_tiled(images, Tiling(512, 64)), vae.encode(images)),
    ):
        seen = []
        while True:
            try:
                seen.append(next(tiled))
            except StopIteration as end:
                torch.testing.assert_close(end.value, whole, rtol=1e-4, atol=1e-5)
                break
        assert seen[-1] == (len(seen), len(seen)) == (len(whole), len(whole))
