"""The nodes of SeedVR2, which makes an enlarged image or video sharp: before, around and after its sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, DynamicCombo, InputType, Int
from serve_app.nodes.sockets import CONDITIONING, IMAGE, INT, LATENT, MODEL, RUNTIME
from serve_app.nodes.video.seedvr2_colors import CORRECTIONS
from serve_app.sampling.latents.latent_formats import SEEDVR2
from serve_app.values import Latent

MULTIPLE = 16
"""Of the sides of what is encoded, in pixels."""
LONGEST = 16384
BATCH = "model/latent/batch"


@node(
    "SeedVR2Preprocess",
    "Pre-Process SeedVR2 Input",
    category="image/pre-processors",
    return_names=("images",),
    description="Fills images up to what SeedVR2 reads; Post-Process SeedVR2 Output cuts it off again.",
    search_aliases=("seedvr2", "upscale", "video upscale", "pad", "preprocess"),
)
def seedvr2_preprocess(resized_images: IMAGE) -> IMAGE:
    """Images with black at the right and the bottom, and the last again until a video fills its latent frames.

    Return images (B,H,W,3), which are one video, of sides that are multiples of 16. Errors: NodeError for images of one
    row or column.
    """
    count, height, width = resized_images.shape[:3]
    if min(height, width) < 2:
        raise NodeError(f"the images are {width}×{height}; both sides must be 2 pixels and more")
    more = -(count - 1) % SEEDVR2.frames
    down, across = -height % MULTIPLE, -width % MULTIPLE
    allow(count + more, height + down, width + across, 3)
    images = pad(resized_images[..., :3].clamp(0, 1), (0, 0, 0, across, 0, down))
    return torch.cat([images, images[-1:].expand(more, -1, -1, -1)])


@node(
    "SeedVR2PostProcessing",
    "Post-Process SeedVR2 Output",
    category="image/post-processors",
    return_names=("images",),
    description="Cuts what SeedVR2 made to the size of what it was made from, and takes over the colours of that.",
    search_aliases=("seedvr2", "upscale", "color correction", "color match", "postprocess"),
)
def seedvr2_post_processing(
    images: IMAGE,
    original_resized_images: IMAGE,
    color_correction_method: Annotated[str, Combo([*CORRECTIONS, "none"], default="lab")],
) -> IMAGE:
    """Images at the size of their originals, with their colours and their alpha channel; sides are made even.

    Return as many as there are of both.
    """
    count = min(len(images), len(original_resized_images))
    height, width = map(min, images.shape[1:3], original_resized_images.shape[1:3])
    made = images[:count, :height, :width]
    if color_correction_method != "none":
        originals = _resized(original_resized_images[:count, ..., :3], height, width)
        correct = CORRECTIONS[color_correction_method]
        made = torch.stack([correct(*pair) for pair in zip(made[..., :3], originals, strict=True)])
    if original_resized_images.shape[-1] == 4:
        alpha = original_resized_images[:count, :height, :width, 3:]
        made = torch.cat([made, alpha], dim=-1)
    return made[:, : height - height % 2, : width - width % 2]


@node(
    "SeedVR2Conditioning",
    "Apply SeedVR2 Conditioning",
    category="model/conditioning",
    return_names=("positive", "negative"),
    description="Makes both conditionings of SeedVR2 from latents of the enlarged image or video.",
    search_aliases=("seedvr2", "upscale", "conditioning"),
)
async def seedvr2_conditioning(
    model: MODEL, vae_conditioning: Annotated[Latent, InputType("LATENT", {"display_name": "latent"})], runtime: RUNTIME
) -> tuple[CONDITIONING, CONDITIONING]:
    """The texts that a SeedVR2 holds, each with the latents to go by.

    Errors: NodeError for another model, or for latents of another VAE.
    """
    latents = _of_seedvr2(vae_conditioning)
    texts = await runtime.own_texts(model)
    condition = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    return [(texts["positive"], {"condition": condition})], [(texts["negative"], {"condition": condition})]


@node(
    "SeedVR2TemporalChunk",
    "Split SeedVR2 Latent",
    category=BATCH,
    return_names=("latents", "temporal_overlap"),
    description="Cuts a long video's latents into parts that are sampled one after the other.",
    search_aliases=("seedvr2", "split", "chunk", "temporal", "video upscale", "rebatch"),
)
async def seedvr2_temporal_chunk(
    latent: LATENT,
    temporal_overlap: Annotated[int, Int(0, min=0, max=LONGEST)],
    chunking_mode: Annotated[
        Mapping[str, Any],
        DynamicCombo({"auto": {}, "manual": {"frames_per_chunk": Int(21, min=1, max=LONGEST, step=4)}}),
    ],
    runtime: RUNTIME,
) -> tuple[list[LATENT], INT]:
    """Parts of a video's latents, which overlap by some latent frames, and by how many they do.

    In the mode "auto" a part is as long as this pool's latent_cells allows; ComfyUI has as much as its card has memory
    for. Errors: NodeError for latents of another VAE, or for a number of images that is not 1, 5, 9, ….
    """
    samples = _of_seedvr2(latent)
    frames = samples.shape[2]
    if chunking_mode["chunking_mode"] == "manual":
        images = int(chunking_mode["frames_per_chunk"])
        if images < 1 or (images - 1) % SEEDVR2.frames:
            raise NodeError(f"frames_per_chunk is {images}; SeedVR2 takes 1, 5, 9 and so on, by 4 more each")
        part = (images - 1) // SEEDVR2.frames + 1
    else:
        most = await runtime.most_cells()
        part = frames if most is None else max(1, most // samples[:, 0, 0].numel())
    if frames <= part:
        return [latent], 0
    shared = min(temporal_overlap, part - 1)
    starts = range(0, max(1, frames - shared), part - shared)
    return [{**latent, "samples": samples[:, :, start : start + part].contiguous()} for start in starts], shared


@node(
    "SeedVR2TemporalMerge",
    "Merge SeedVR2 Latents",
    category=BATCH,
    return_names=("latent",),
    description="Joins the sampled parts of a video's latents; where they overlap, one fades into the next.",
    search_aliases=("seedvr2", "merge", "temporal", "hann", "crossfade"),
)
def seedvr2_temporal_merge(
    latents: list[LATENT],
    temporal_overlap: list[Annotated[int, Int(0, min=0, max=LONGEST, forceInput=True)]],
) -> LATENT:
    """Parts of a video's latents as one. Errors: NodeError for parts of unequal sizes."""
    parts = [latent["samples"] for latent in latents]
    first = parts[0]
    for number, part in enumerate(parts):
        shorter = number == len(parts) - 1 and part.ndim == 5 and part.shape[2] <= first.shape[2]
        alike = part.ndim == 5 and part.shape[:2] == first.shape[:2] and part.shape[3:] == first.shape[3:]
        if not alike or not (shorter or part.shape[2] == first.shape[2]):
            raise NodeError(
                f"part {number} of the video is {tuple(part.shape)} and the first {tuple(first.shape)}; parts are "
                "equal but for the last, which may have fewer latent frames"
            )
    kept = {name: value for name, value in latents[0].items() if name != "noise_mask"}
    step = first.shape[2] - min(temporal_overlap[0], first.shape[2] - 1)
    whole = first
    for number, part in enumerate(parts[1:], 1):
        begun = number * step
        fade = min(whole.shape[2] - begun, part.shape[2])
        own = _fading(fade).to(part).view(-1, 1, 1)
        mixed = whole[:, :, begun : begun + fade] * own + part[:, :, :fade] * (1 - own)
        whole = torch.cat([whole[:, :, :begun], mixed, part[:, :, fade:]], dim=2)
    return {**kept, "samples": whole}


def _of_seedvr2(latent: Latent) -> Tensor:
    samples: Tensor = latent["samples"]
    SEEDVR2.check(samples.shape)
    return samples


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[1:3] == (height, width):
        return images
    rows = images.movedim(-1, 1)
    return interpolate(rows, (height, width), mode="bicubic", antialias=True).movedim(1, -1)


def _fading(count: int) -> Tensor:
    """Return shares (count,) that fall from 1 to 0 in the middle third, along half a wave."""
    ramp = (torch.linspace(0, 1, count) * 3 - 1).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * ramp)
