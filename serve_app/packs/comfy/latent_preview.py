"""`latent_preview` for node packs: latents as small pictures.

Source: the facts of ComfyUI 0.33.0's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear

from serve_app.errors import NodeError
from serve_app.packs.comfy.sample import PREVIEW
from serve_app.packs.comfy.sd import VAE
from serve_app.recipe.recipe import tiny_vae
from serve_app.sampling.latents.latent_formats import FLUX, FLUX2, SD, SD3, SDXL
from serve_app.store.models.catalog import TINY_VIDEO_VAES

MAX_PREVIEW_RESOLUTION = 512
TINY_LATENTS = {latents.tiny: latents for latents in (SD, SDXL, SD3, FLUX, FLUX2)}
"""The latents that there is a small autoencoder for, by how the names of its files begin."""


def preview_to_image(latent_image: Tensor, do_scale: bool = True) -> Image.Image:
    """Return (h,w,3) in −1…1 as an image; do_scale False: in 0…1."""
    shares = (latent_image + 1) / 2 if do_scale else latent_image
    return Image.fromarray((shares.clamp(0, 1) * 255).to("cpu", torch.uint8).numpy().astype(np.uint8))


class LatentPreviewer:
    """What makes a picture of sampled latents; subclasses say how."""

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        """Return the first of the latents as a picture."""
        raise NotImplementedError

    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor) -> tuple[str, Image.Image, int]:
        """Return (format, picture, its longest side), as a ProgressBar shows it."""
        return "JPEG", self.decode_latent_to_preview(x0), MAX_PREVIEW_RESOLUTION


class Latent2RGBPreviewer(LatentPreviewer):
    """One linear map from a cell's channels to colours. latent_rgb_factors: a row (3) a channel.

    Errors: NodeError for latents that none is known for.
    """

    def __init__(
        self,
        latent_rgb_factors: Sequence[Sequence[float]] | None,
        latent_rgb_factors_bias: Sequence[float] | None = None,
        latent_rgb_factors_reshape: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if latent_rgb_factors is None:
            raise NodeError("no map from these latents to colours is known here; decode them by a VAE")
        self.latent_rgb_factors = torch.tensor(latent_rgb_factors).transpose(0, 1)
        self.latent_rgb_factors_bias = (
            None if latent_rgb_factors_bias is None else torch.tensor(latent_rgb_factors_bias)
        )
        self.latent_rgb_factors_reshape = latent_rgb_factors_reshape

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        """Return the first of (B,C,h,w), or the first moment of the first of (B,C,T,h,w), as a picture (h,w)."""
        if self.latent_rgb_factors_reshape is not None:
            x0 = self.latent_rgb_factors_reshape(x0)
        cells = (x0[0, :, 0] if x0.ndim == 5 else x0[0]).movedim(0, -1)
        factors, bias = self.latent_rgb_factors.to(cells), self.latent_rgb_factors_bias
        return preview_to_image(linear(cells, factors, None if bias is None else bias.to(cells)))


class TAESD:
    """A small autoencoder of latents as models sample them. decoder_path: its file in vae_approx, known by its name.

    Errors: NodeError for another file.
    """

    def __init__(self, encoder_path: Any = None, decoder_path: Any = None, latent_channels: int = 4) -> None:
        name = Path(str(decoder_path)).name.partition("_")[0]
        if name not in TINY_LATENTS:
            raise NodeError(f"{decoder_path} is the decoder of none of {', '.join(map(str, TINY_LATENTS))}")
        self._latents = TINY_LATENTS[name]
        self._vae = VAE(tiny_vae(name))

    def to(self, *arguments: Any, **options: Any) -> TAESD:
        """Return this: the runtime says where it is."""
        return self

    def decode(self, x: Tensor) -> Tensor:
        """Return images (B,3,H,W) in −1…1 of sampled latents."""
        return self._vae.decode(self._latents.from_model(x)).movedim(-1, 1) * 2 - 1


class TAESDPreviewerImpl(LatentPreviewer):
    """A picture as an autoencoder decodes it. taesd: has `decode`."""

    def __init__(self, taesd: Any) -> None:
        self.taesd = taesd

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        """Return the first of the latents as a picture."""
        return preview_to_image(self.taesd.decode(x0[:1])[0].movedim(0, 2))


class TAEHVPreviewerImpl(TAESDPreviewerImpl):
    """A picture as a video's autoencoder decodes it. taesd: has `decode`, whose videos are in 0…1."""

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        """Return the first image of the first of latents (B,C,T,h,w) as a picture."""
        return preview_to_image(self.taesd.decode(x0[:1, :, :1])[0][0], do_scale=False)


NAMES: Mapping[str, Any] = {
    **PREVIEW,
    "MAX_PREVIEW_RESOLUTION": MAX_PREVIEW_RESOLUTION,
    "VIDEO_TAES": list(TINY_VIDEO_VAES),
    **{
        made.__name__: made
        for made in (
            *(preview_to_image, LatentPreviewer, Latent2RGBPreviewer, TAESD, TAESDPreviewerImpl),
            TAEHVPreviewerImpl,
        )
    },
}
"""What `latent_preview` has."""
