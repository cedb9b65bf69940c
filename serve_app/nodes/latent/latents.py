"""The nodes that resize, decode, save and load LATENT. A latent's other members travel on beside its samples."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError

from serve_app.errors import NodeError
from serve_app.images import Crop
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import allow_decoded, fit_latents
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, File, Float, Int, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, LATENT, PROMPT, RUNTIME, STORE, VAE

LATENT_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]
CROPS = ["disabled", "center"]


UpscaleMethod: TypeAlias = Annotated[str, Choice(LATENT_METHODS)]
Side: TypeAlias = Annotated[int, Int(512, min=0, max=MAX_RESOLUTION, step=8)]


@node("LatentUpscale", "Upscale Latent", category="model/latent", function="upscale")
def latent_upscale(
    samples: LATENT, upscale_method: UpscaleMethod, width: Side, height: Side, crop: Annotated[Crop, Choice(CROPS)]
) -> LATENT:
    """Latents at another size, given in pixels.

    Resize; a side of 0 follows the other, both 0 change nothing, and no side is under 64 pixels.
    """
    if width == 0 and height == 0:
        return samples
    latents: torch.Tensor = samples["samples"]
    old_height, old_width = latents.shape[-2:]
    if width == 0:
        height = max(64, height)
        width = round(old_width * height / old_height)
    elif height == 0:
        width = max(64, width)
        height = round(old_height * width / old_width)
    resized = fit_latents(latents, max(64, width) // 8, max(64, height) // 8, upscale_method, crop)
    return {**samples, "samples": resized}


@node("LatentUpscaleBy", "Upscale Latent By", category="model/latent", function="upscale")
def latent_upscale_by(
    samples: LATENT, upscale_method: UpscaleMethod, scale_by: Annotated[float, Float(1.5, min=0.01, max=8.0, step=0.01)]
) -> LATENT:
    """Latents larger or smaller by a factor.

    Return the latents with sides of round(side × scale_by), at least 1.
    """
    height, width = (max(1, round(side * scale_by)) for side in samples["samples"].shape[-2:])
    return {**samples, "samples": fit_latents(samples["samples"], width, height, upscale_method)}


@node(
    "VAEDecode",
    "VAE Decode",
    category="model/latent",
    function="decode",
    description="Decodes latent images into pixels.",
    order=("samples",),
)
async def vae_decode(vae: VAE, samples: LATENT, runtime: RUNTIME) -> IMAGE:
    """Latents to images. Return images (B,H,W,3); those of a video one after the other."""
    await allow_decoded(samples["samples"], vae, runtime)
    images = await runtime.decode(vae, samples["samples"])
    return images.reshape(-1, *images.shape[-3:])


@node("VAEEncode", "VAE Encode", category="model/latent", function="encode", order=("pixels",))
async def vae_encode(vae: VAE, pixels: IMAGE, runtime: RUNTIME) -> LATENT:
    """Images to latents. Return latents of the images, of as many of their channels as the VAE reads."""
    return {"samples": await runtime.encode(vae, pixels)}


@node("LoadLatent", "Load Latent", category="model/latent", function="load")
async def load_latent(latent: Annotated[str, File("input")], store: STORE) -> LATENT:
    """A .latent file to latents.

    Return the file's latents in float32. Errors: NodeError for a file of another kind.
    """
    data = await store.read(latent)
    try:
        tensors = await asyncio.to_thread(safetensors.torch.load, data)
        samples = tensors["latent_tensor"].float()
    except (SafetensorError, KeyError) as error:
        raise NodeError(f"{latent!r} is no .latent file: {error}") from error
    # Files from before the format had a version hold latents scaled for SD 1.5's backbone.
    return {"samples": samples if "latent_format_version_0" in tensors else samples / 0.18215}


@node(
    "SaveLatent",
    "Save Latent",
    category="model/latent",
    function="save",
    return_types=("LATENT",),
    return_names=("samples",),
    output_node=True,
)
async def save_latent(
    samples: LATENT,
    filename_prefix: Annotated[str, Text("latents/ComfyUI")],
    prompt: PROMPT,
    extra_pnginfo: EXTRA_PNGINFO,
    store: STORE,
) -> dict[str, Any]:
    """Latents to a .latent file: safetensors with ComfyUI's two keys.

    Store the samples with the workflow in the metadata.
    """
    tensors = {"latent_tensor": samples["samples"].contiguous(), "latent_format_version_0": torch.tensor([])}
    extra = extra_pnginfo if isinstance(extra_pnginfo, dict) else {}
    metadata = {key: json.dumps(value) for key, value in {"prompt": prompt, **extra}.items()}
    data = await asyncio.to_thread(safetensors.torch.save, tensors, metadata)
    saved = await store.save("output", filename_prefix, ".latent", [data])
    return {"ui": {"latents": saved}, "result": (samples,)}
