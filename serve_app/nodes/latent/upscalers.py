"""The nodes that enlarge latents by a network."""

from __future__ import annotations

from typing import Annotated

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import File
from serve_app.nodes.sockets import LATENT, LATENT_UPSCALE_MODEL, RUNTIME, VAE
from serve_app.nodes.video.wan import video_vae
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import LTX2


@node("LatentUpscaleModelLoader", "Load Latent Upscale Model", category="model/loaders")
def latent_upscale_model_loader(model_name: Annotated[str, File("latent_upscale_models")]) -> LATENT_UPSCALE_MODEL:
    """A latent upscaler's file."""
    return Recipe("latent_upscaler", "latent_upscale_models", model_name)


@node("LTXVLatentUpsampler", category="model/latent/ltxv", experimental=True)
async def ltxv_latent_upsampler(
    samples: LATENT, upscale_model: LATENT_UPSCALE_MODEL, vae: VAE, runtime: RUNTIME
) -> LATENT:
    """Latents of a video enlarged by a latent upscaler, all of which are to be sampled.

    vae: the autoencoder whose latents they are. Errors: NodeError for another.
    """
    await video_vae(runtime, vae, LTX2)
    made = await runtime.upscale_latents(upscale_model, vae, samples["samples"])
    return {**{name: value for name, value in samples.items() if name != "noise_mask"}, "samples": made}
