from __future__ import annotations

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.packs.comfy.latent_preview import TAESD, Latent2RGBPreviewer, TAEHVPreviewerImpl, TAESDPreviewerImpl

FACTORS = [[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]


@pytest.mark.parametrize("moments", [(), (1,)])
def test_a_cells_channels_become_its_colour(moments: tuple[int, ...]) -> None:
    x0 = torch.tensor([1.0, -1.0]).view(1, 2, *moments, 1, 1).expand(2, 2, *moments, 3, 4)
    picture = Latent2RGBPreviewer(FACTORS, [0.0, 0.0, 3.0]).decode_latent_to_preview(x0)
    assert picture.size == (4, 3)
    assert picture.getpixel((0, 0)) == (255, 63, 255)


def test_latents_that_no_map_is_known_for_say_so() -> None:
    with pytest.raises(NodeError, match="decode them by a VAE"):
        Latent2RGBPreviewer(None)


def test_an_autoencoders_picture_is_of_the_first_latent() -> None:
    class Decoder:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.full((len(latents), 3, 2, 2), -1.0)

    assert TAESDPreviewerImpl(Decoder()).decode_latent_to_preview(torch.zeros(5, 4, 1, 1)).getpixel((1, 1)) == (0, 0, 0)


def test_a_videos_picture_is_of_its_first_latent_frame() -> None:
    class Decoder:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            assert latents.shape == (1, 16, 1, 1, 1)
            return torch.full((1, 1, 2, 2, 3), 1.0)

    shown = TAEHVPreviewerImpl(Decoder()).decode_latent_to_preview(torch.zeros(5, 16, 3, 1, 1))
    assert shown.getpixel((1, 1)) == (255, 255, 255)


def test_a_file_that_is_no_small_autoencoder_is_refused_by_its_name() -> None:
    with pytest.raises(NodeError, match=r"other_decoder.safetensors is the decoder of none of taesd"):
        TAESD(None, "vae_approx/other_decoder.safetensors")
