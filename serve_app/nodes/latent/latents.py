"""The nodes that resize, decode, save and load LATENT. A latent's other members travel on beside its samples."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError

from serve_app.errors import NodeError
from serve_app.execution.runtime import Saved
from serve_app.images import Crop
from serve_app.nested_tensor import NestedTensor, Samples, parts_of
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.nodes.image.match_size import allow_decoded, fit_latents
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, File, Float, Int, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, JOINT_LATENT, LATENT, PROMPT, RUNTIME, STORE, VAE

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
async def vae_decode(vae: VAE, samples: JOINT_LATENT, runtime: RUNTIME) -> IMAGE:
    """Latents to images. Return images (B,H,W,3); those of a video, which may have a sound, one after the other."""
    latents = parts_of(samples["samples"])[0]
    await allow_decoded(latents, vae, runtime)
    images = await runtime.decode(vae, latents)
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
        parts = [tensors["latent_tensor"].float()]
    except (SafetensorError, KeyError) as error:
        raise NodeError(f"{latent!r} is no .latent file: {error}") from error
    if "latent_format_version_0" not in tensors:
        # Files from before the format had a version hold latents scaled for SD 1.5's backbone.
        return {"samples": parts[0] / 0.18215}
    while (further := tensors.get(_part_name(len(parts)))) is not None:
        parts.append(further.float())
    return {"samples": NestedTensor(parts) if len(parts) > 1 else parts[0]}


@node(
    "SaveLatent",
    "Save Latent",
    category="model/latent",
    function="save",
    return_types=("LATENT",),
    output_is_list=(True,),
    return_names=("samples",),
    output_node=True,
    skips_blocked=True,
)
async def save_latent(
    samples: list[JOINT_LATENT],
    filename_prefix: list[Annotated[str, Text("latents/ComfyUI")]],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Latents to .latent files: safetensors with ComfyUI's two keys, and the workflow in the metadata.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """
    metadata = workflow_text(prompt, extra_pnginfo)
    files: list[tuple[str, Sequence[int], Saved]] = [
        (at(filename_prefix, i), (0, 0), partial(_latent_file, latent["samples"], metadata))
        for i, latent in enumerate(samples)
    ]
    saved = await save_together(store[0], "output", ".latent", files)
    return {"ui": {"latents": saved}, "result": (samples,)}


def _part_name(number: int) -> str:
    """Return the name of a latent's part in a file. ComfyUI reads the first, as of a latent of one part."""
    return f"latent_tensor_{number}" if number else "latent_tensor"


def _latent_file(samples: Samples, metadata: dict[str, str]) -> bytes:
    tensors = {_part_name(number): part.contiguous() for number, part in enumerate(parts_of(samples))}
    tensors["latent_format_version_0"] = torch.tensor([])
    data: bytes = safetensors.torch.save(tensors, metadata)
    return data
