"""The nodes whose model works tile by tile: upscale models, and the VAE on large images."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nested_tensor import parts_of
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import allow_decoded
from serve_app.nodes.inputs import File, Int
from serve_app.nodes.sockets import IMAGE, JOINT_LATENT, LATENT, RUNTIME, UPSCALE_MODEL, VAE
from serve_app.recipe.recipe import Recipe
from serve_app.values import Tiling

Overlap: TypeAlias = Annotated[int, Int(64, min=0, max=4096, step=32)]
# Declared as in ComfyUI, for workflows hold them; only video VAEs read them.
Frames: TypeAlias = Annotated[int, Int(64, min=8, max=4096, step=4)]
SharedFrames: TypeAlias = Annotated[int, Int(8, min=4, max=4096, step=4)]


@node("UpscaleModelLoader", "Load Upscale Model", category="model/loaders", function="load_model")
def upscale_model_loader(model_name: Annotated[str, File("upscale_models")]) -> UPSCALE_MODEL:
    """An upscale model's file."""
    return Recipe("upscaler", "upscale_models", model_name)


@node("ImageUpscaleWithModel", "Upscale Image (using Model)", category="image/upscaling", function="upscale")
async def image_upscale_with_model(upscale_model: UPSCALE_MODEL, image: IMAGE, runtime: RUNTIME) -> IMAGE:
    """Images enlarged by an upscale model. Return images at the model's own scale."""
    return await runtime.upscale(upscale_model, image)


@node(
    "VAEDecodeTiled",
    "VAE Decode (Tiled)",
    category="model/latent",
    function="decode",
    order=("samples",),
    required=("overlap", "temporal_size", "temporal_overlap"),
)
async def vae_decode_tiled(
    vae: VAE,
    samples: JOINT_LATENT,
    tile_size: Annotated[int, Int(512, min=64, max=4096, step=32)],
    overlap: Overlap = 64,
    temporal_size: Frames = 64,
    temporal_overlap: SharedFrames = 8,
    *,
    runtime: RUNTIME,
) -> IMAGE:
    """Latents to images, in tiles.

    Return images (B,H,W,3), those of a video one after the other; neighbours share at most a quarter of a tile.

    Of a video a tile that is less than twice as long as what neighbours share has half of that.
    """
    shared_frames = temporal_overlap // 2 if temporal_size < temporal_overlap * 2 else temporal_overlap
    shared = tile_size // 4 if tile_size < overlap * 4 else overlap
    tiling = Tiling(tile_size, shared, temporal_size, shared_frames)
    latents = parts_of(samples["samples"])[0]
    await allow_decoded(latents, vae, runtime)
    images = await runtime.decode(vae, latents, tiling)
    return images.reshape(-1, *images.shape[-3:])


@node(
    "VAEEncodeTiled",
    "VAE Encode (Tiled)",
    category="model/latent",
    function="encode",
    order=("pixels",),
    required=("temporal_size", "temporal_overlap"),
)
async def vae_encode_tiled(
    vae: VAE,
    pixels: IMAGE,
    tile_size: Annotated[int, Int(512, min=64, max=4096, step=64)],
    overlap: Overlap,
    temporal_size: Frames = 64,
    temporal_overlap: SharedFrames = 8,
    *,
    runtime: RUNTIME,
) -> LATENT:
    """Images to latents, in tiles. Return latents of the images, of as many of their channels as the VAE reads.

    Errors: NodeError for an overlap that is not smaller than half a tile, the narrowest that is used.
    """
    return {"samples": await runtime.encode(vae, pixels, Tiling(tile_size, overlap, temporal_size, temporal_overlap))}
