"""The nodes of videos that are made block by block (Causal Forcing, Self-Forcing)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Int
from serve_app.nodes.latent.empty import FRAMES, empty_video
from serve_app.nodes.sockets import IMAGE, LATENT, MODEL, RUNTIME, SAMPLER, VAE
from serve_app.nodes.video.wan import sized, video_vae
from serve_app.recipe.context import FirstFrames
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.sampling.samplers.autoregressive import NAME
from serve_app.values import SamplerChoice

_Width: TypeAlias = Annotated[int, Int(832, min=16, max=8192, step=16)]
_Height: TypeAlias = Annotated[int, Int(480, min=16, max=8192, step=16)]
_Length: TypeAlias = Annotated[int, Int(81, min=1, max=1024, step=FRAMES)]
_BatchSize: TypeAlias = Annotated[int, Int(1, min=1, max=64)]


@node("EmptyARVideoLatent", category="model/latent/autoregressive")
def empty_ar_video_latent(width: _Width, height: _Height, length: _Length, batch_size: _BatchSize) -> LATENT:
    """Empty latents of a video of `length` images."""
    return {"samples": empty_video(width, height, length, batch_size)}


@node("SamplerARVideo", "Sampler AR Video", category="model/sampling/samplers")
def sampler_ar_video(
    num_frame_per_block: Annotated[
        int,
        Int(1, min=1, max=64, tooltip="Latent frames of a block: 1, or 3, as the model was trained."),
    ],
) -> SAMPLER:
    """The sampler that makes a video block by block, for models trained to."""
    return SamplerChoice(NAME, {"num_frame_per_block": num_frame_per_block})


@node("ARVideoI2V", category="model/conditioning/autoregressive")
async def ar_video_i2v(
    model: MODEL,
    vae: VAE,
    start_image: IMAGE,
    width: _Width,
    height: _Height,
    length: _Length,
    batch_size: _BatchSize,
    runtime: RUNTIME,
) -> tuple[MODEL, LATENT]:
    """A model whose videos begin with an image, and empty latents for one.

    Errors: NodeError for another VAE than Wan 2.1's.
    """
    await video_vae(runtime, vae, WAN)
    first = await runtime.encode(vae, sized(start_image[:1], width, height))
    return model.with_patch(FirstFrames(first)), {"samples": empty_video(width, height, length, batch_size)}
