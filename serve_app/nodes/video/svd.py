"""The nodes of Stable Video Diffusion, which makes a video of an image. Its latents are a batch, a frame each."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, File, Float, Int
from serve_app.nodes.sockets import CLIP_VISION, CONDITIONING, IMAGE, LATENT, MODEL, RUNTIME, VAE
from serve_app.nodes.video.wan import PAIR_AND_LATENT, sized
from serve_app.recipe.guidance import CfgByFrame
from serve_app.recipe.recipe import Recipe

CELL = 8
"""Pixels a latent cell covers along one side."""

MinCfg: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.5, round=0.01, advanced=True)]


@node(
    "ImageOnlyCheckpointLoader",
    "Load Checkpoint Image Only (img2vid model)",
    category="model/loaders",
    function="load_checkpoint",
)
def image_only_checkpoint_loader(
    ckpt_name: Annotated[str, File("checkpoints")],
) -> tuple[MODEL, CLIP_VISION, VAE]:
    """One file with a backbone, an image encoder and a VAE."""
    return (
        Recipe("backbone", "checkpoints", ckpt_name),
        Recipe("clip_vision", "checkpoints", ckpt_name),
        Recipe("vae", "checkpoints", ckpt_name),
    )


@node(
    "SVD_img2vid_Conditioning",
    category="model/conditioning/stable video",
    function="encode",
    return_names=PAIR_AND_LATENT,
)
async def svd_image_to_video(
    clip_vision: CLIP_VISION,
    init_image: IMAGE,
    vae: VAE,
    width: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=8)],
    height: Annotated[int, Int(576, min=16, max=MAX_RESOLUTION, step=8)],
    video_frames: Annotated[int, Int(14, min=1, max=4096)],
    motion_bucket_id: Annotated[int, Int(127, min=1, max=1023, advanced=True)],
    fps: Annotated[int, Int(6, min=1, max=1024)],
    augmentation_level: Annotated[float, Float(0.0, min=0.0, max=10.0, step=0.01, advanced=True)],
    runtime: RUNTIME,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with: what is seen in the image, and its latents; empty latents of the video.

    The noise that augmentation_level adds to the image is the same each time; ComfyUI's depends on what ran before.
    """
    seen = await runtime.see(clip_vision, init_image, crop=True)
    allow(len(init_image), height, width, 3)
    pixels = sized(init_image, width, height)
    if augmentation_level > 0:
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        pixels = pixels + noise * augmentation_level
    image, text = await runtime.encode(vae, pixels), seen.image_embeds[None]
    said = {"motion_bucket_id": motion_bucket_id, "fps": fps, "augmentation_level": augmentation_level}
    allow(video_frames, 4, height // CELL, width // CELL)
    return (
        [(text, {**said, "concat_latent_image": image})],
        [(torch.zeros_like(text), {**said, "concat_latent_image": torch.zeros_like(image)})],
        {"samples": torch.zeros(video_frames, 4, height // CELL, width // CELL)},
    )


@node("VideoLinearCFGGuidance", "Video Linear CFG Guidance", category="model/sampling/guiders", function="patch")
def video_linear_cfg_guidance(model: MODEL, min_cfg: MinCfg) -> MODEL:
    """Guide the first frame of a video least and the last most."""
    return model.with_patch(CfgByFrame(min_cfg))


@node("VideoTriangleCFGGuidance", "Video Triangle CFG Guidance", category="model/sampling/guiders", function="patch")
def video_triangle_cfg_guidance(model: MODEL, min_cfg: MinCfg) -> MODEL:
    """Guide the first and the last frame of a video least and those in the middle most."""
    return model.with_patch(CfgByFrame(min_cfg, triangle=True))
