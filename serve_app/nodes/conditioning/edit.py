"""The node that makes CONDITIONING for models that edit an image (instruct-pix2pix)."""

from __future__ import annotations

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.sockets import CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.values import Conditioning


@node(
    "InstructPixToPixConditioning",
    category="model/conditioning/instructpix2pix",
    function="encode",
    return_names=("positive", "negative", "latent"),
    order=("positive", "negative", "vae"),
)
async def instruct_pix_to_pix_conditioning(
    positive: CONDITIONING, negative: CONDITIONING, pixels: IMAGE, vae: VAE, runtime: RUNTIME
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """Put an image beside a text: the model then follows the text in changing the image.

    Return both conditionings with the image's latents, and empty latents of its size.
    """
    latents = await runtime.encode(vae, pixels[..., :3])

    def beside(conditioning: Conditioning) -> Conditioning:
        return [(cond, {**options, "concat_latent_image": latents}) for cond, options in conditioning]

    return beside(positive), beside(negative), {"samples": torch.zeros_like(latents)}
