"""The nodes of inpainting: masks of a latent, and conditioning with the image that stays.

A noise mask is (N,1,H,W) in pixels, 1 where to sample.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch.nn.functional import max_pool2d

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import PIXELS_PER_LATENT, as_planes, fit_batch, fit_mask
from serve_app.nodes.inputs import Bool, Int
from serve_app.nodes.sockets import CONDITIONING, IMAGE, JOINT_LATENT, LATENT, MASK, RUNTIME, VAE
from serve_app.values import Latent


@node("SetLatentNoiseMask", "Set Latent Noise Mask", category="model/latent", function="set_mask")
def set_latent_noise_mask(samples: JOINT_LATENT, mask: MASK) -> LATENT:
    """A latent that is to be sampled only where a mask is 1. Return the latent with the mask as its noise mask."""
    return {**samples, "noise_mask": as_planes(mask).unsqueeze(1)}


@node(
    "VAEEncodeForInpaint",
    "VAE Encode (for Inpainting)",
    category="model/latent",
    function="encode",
    required=("grow_mask_by",),
    order=("pixels",),
)
async def vae_encode_for_inpaint(
    vae: VAE,
    pixels: IMAGE,
    mask: MASK,
    runtime: RUNTIME,
    grow_mask_by: Annotated[int, Int(6, min=0, max=64, step=1)] = 6,
) -> LATENT:
    """Images to latents with the masked pixels greyed out, to be sampled there and a little around.

    Return the latents and the mask grown by half of grow_mask_by pixels on each side.
    """
    family = await runtime.family(vae)
    cropped, mask = _whole_latents(pixels, mask, family.factor)
    latents = await runtime.encode(vae, _greyed(cropped, mask))
    height, width = mask.shape[-2:]
    grown = mask.round()
    if grow_mask_by:
        grown = max_pool2d(grown, grow_mask_by, stride=1, padding=grow_mask_by // 2).clamp(0, 1)
    return {"samples": latents, "noise_mask": grown[..., :height, :width].round()}


@node(
    "InpaintModelConditioning",
    category="model/conditioning",
    function="encode",
    return_names=("positive", "negative", "latent"),
    required=("noise_mask",),
    order=("positive", "negative", "vae"),
)
async def inpaint_model_conditioning(
    positive: CONDITIONING,
    negative: CONDITIONING,
    pixels: IMAGE,
    vae: VAE,
    mask: MASK,
    runtime: RUNTIME,
    noise_mask: Annotated[bool, Bool(True)] = True,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """Conditioning and latents for a backbone trained to inpaint: it is shown the mask and what surrounds it.

    Return both conditionings with "concat_latent_image" and "concat_mask", and the whole images' latents.

    noise_mask: whether the latent is to be sampled in the mask only, too.
    """
    cropped, mask = _whole_latents(pixels, mask, PIXELS_PER_LATENT)
    shown = {
        "concat_latent_image": await runtime.encode(vae, _greyed(cropped, mask)),
        "concat_mask": mask,
    }
    latent: Latent = {"samples": await runtime.encode(vae, pixels[..., :3])}
    if noise_mask:
        latent["noise_mask"] = mask
    with_mask = [[(cond, {**options, **shown}) for cond, options in side] for side in (positive, negative)]
    return with_mask[0], with_mask[1], latent


def _whole_latents(pixels: torch.Tensor, mask: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the middle of the images (B,H,W,3) that is whole latents, and that of the mask as (N,1,H,W).

    factor: how many pixels a latent covers along a side.
    """
    height, width = pixels.shape[1:3]
    top, left = height % factor // 2, width % factor // 2
    rows = slice(top, top + height // factor * factor)
    columns = slice(left, left + width // factor * factor)
    return pixels[:, rows, columns, :3], fit_mask(mask, height, width)[..., rows, columns]


def _greyed(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the images (B,H,W,3) with 0.5 where the mask (N,1,H,W) rounds to 1."""
    kept = fit_batch(1.0 - mask.round(), pixels.shape[0]).movedim(1, -1)
    return (pixels - 0.5) * kept + 0.5
