"""The nodes of LTX-2's guides: images that a video follows at some of its frames, and references of IC-LoRAs.

A guide's latents stand behind the video's own until LTXVCropGuides cuts them off; conditionings say where they belong.
Source: HaCohen et al. 2026, arXiv:2601.03233; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, Int
from serve_app.nodes.sockets import CONDITIONING, IC_LORA_PARAMETERS, IMAGE, LATENT, MASK, MODEL, RUNTIME, VAE
from serve_app.nodes.video.ltx import CATEGORY, FRAMES, PIXELS, mask_of
from serve_app.nodes.video.wan import sized, video_vae
from serve_app.recipe.weights import Lora
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import LTX2
from serve_app.sampling.latents.token_spans import GUIDE_ENTRIES, GUIDE_SPANS, token_spans
from serve_app.values import Conditioning

DOWNSCALE = "reference_downscale_factor"
LEFT_OUT = -1.0
"""In a mask of a guide, the cells that are no part of it."""


@node(
    "GetICLoRAParameters",
    "Get IC-LoRA Parameters",
    category=CATEGORY,
    description="Extracts IC-LoRA parameters from the safetensors metadata of a LoRA-loaded model and outputs them for "
    "LTXVAddGuide (eg. reference_downscale_factor).",
    return_names=("iclora_parameters",),
)
async def get_ic_lora_parameters(iclora_model: MODEL, runtime: RUNTIME) -> IC_LORA_PARAMETERS:
    """What the file of a model's last LoRA says of its references."""
    lora = iclora_model.last(Lora)
    said = {} if lora is None else await runtime.lora_metadata(lora.name)
    return {DOWNSCALE: _factor(next((value for name, value in said.items() if name.endswith(DOWNSCALE)), 1))}


def _factor(given: object) -> int:
    """Return a factor of references as a whole number; 1 for what is none."""
    try:
        return max(1, round(float(str(given))))
    except (ValueError, OverflowError):
        return 1


@node("LTXVAddGuide", category=CATEGORY, return_names=("positive", "negative", "latent"))
async def ltxv_add_guide(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    latent: LATENT,
    image: IMAGE,
    frame_idx: Annotated[int, Int(0, min=-9999, max=9999)],
    strength: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)],
    runtime: RUNTIME,
    attention_mask: MASK | None = None,
    iclora_parameters: IC_LORA_PARAMETERS | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """An image, or a clip of 8n + 1, that a video follows from one of its frames on.

    Negative frames count from the end; clips begin at frame 0 or one after a multiple of eight. attention_mask: (1 or
    F,H,W), how much the video heeds the parts of the guide, times `strength`. Return both conditionings, and the latent
    with the guide's behind it. Errors: NodeError for another VAE, or a guide that is longer than the rest of the video.
    """
    await video_vae(runtime, vae, LTX2)
    samples: Tensor = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != LTX2.channels:
        raise NodeError(f"the latent is {tuple(samples.shape)}; LTX-2's videos have five axes and 128 channels")
    rows, _, length, height, width = samples.shape
    factor = _factor((iclora_parameters or {}).get(DOWNSCALE, 1))
    if height % factor or width % factor:
        raise NodeError(
            f"the video is {width}×{height} cells, and the IC-LoRA's references are smaller by {factor}: both sides "
            f"must be multiples of {factor * PIXELS} pixels"
        )
    first, count = frame_idx, len(image)
    if first < 0:
        first = max((length - guide_frames(positive, samples) - 1) * FRAMES + 1 + first, 0)
    alone = count <= FRAMES
    causal = alone or first == 0
    if not causal:
        # The encoder's first cell is of one frame. Further on all are of eight, so a frame is put before and cut off.
        image = torch.cat([image[:1], image])
        first = (first - 1) // FRAMES * FRAMES + 1
    image = image[: (len(image) - 1) // FRAMES * FRAMES + 1]
    guide = await runtime.encode(vae, sized(image, width * PIXELS // factor, height * PIXELS // factor))
    guide = guide if causal else guide[:, :, 1:]
    if (last := -(-first // FRAMES) + guide.shape[2]) > length:
        raise NodeError(
            f"the guide of {count} images begins at frame {first} and ends in cell {last} of {length} in time; "
            "take fewer images or an earlier frame"
        )
    entry = {
        "pre_filter_count": guide.shape[2] * height * width,
        "strength": strength,
        "pixel_mask": None if attention_mask is None else attention_mask[None, None],
        "latent_shape": list(guide.shape[2:]),
    }
    spans = token_spans((guide.shape[2], height, width), LTX2, causal=causal)
    spans[:, 0] += first
    # A cell of a smaller reference covers more of the video.
    spans[:, 1:, 1] += (factor - 1) * PIXELS
    placed = (_placed(given, spans.movedim(0, 1)[None], entry) for given in (positive, negative))
    guide, mask = _spread(guide, factor), mask_of(latent)
    own = torch.full((rows, 1, guide.shape[2], *mask.shape[3:]), max(0.0, 1.0 - strength))
    if factor > 1:
        mask = mask.expand(-1, -1, -1, height, width)
        own = _spread(torch.ones(rows, 1, guide.shape[2], height // factor, width // factor), factor, LEFT_OUT)
        own -= strength
    made = torch.cat([samples, guide.expand(rows, -1, -1, -1, -1)], dim=2)
    return next(placed), next(placed), {"samples": made, "noise_mask": torch.cat([mask, own], dim=2)}


def _placed(conditioning: Conditioning, spans: Tensor, entry: Mapping[str, Any]) -> Conditioning:
    """Return a conditioning with one more guide. spans: of its tokens, (1,3,n,2)."""
    old = _said(conditioning, GUIDE_SPANS)
    entries = [*(_said(conditioning, GUIDE_ENTRIES) or ()), entry]
    whole = spans if old is None else torch.cat([old, spans], dim=2)
    return with_options(conditioning, **{GUIDE_SPANS: whole, GUIDE_ENTRIES: entries})


def _spread(cells: Tensor, factor: int, rest: float = 0.0) -> Tensor:
    """Return cells (B,c,T,h,w) in the first of each factor×factor cells, with others between them."""
    if factor == 1:
        return cells
    made = cells.new_full((*cells.shape[:3], *(side * factor for side in cells.shape[3:])), rest)
    made[..., ::factor, ::factor] = cells
    return made


def _said(conditioning: Conditioning, name: str) -> Any:
    """Return an option of the first entry that has it; None if none has."""
    return next((options[name] for _, options in conditioning if name in options), None)


def guide_frames(conditioning: Conditioning, samples: Tensor) -> int:
    """Return how many of a video's latent frames (B,c,T,h,w), the last ones, are those of guides."""
    spans: Tensor | None = _said(conditioning, GUIDE_SPANS)
    return 0 if spans is None else spans.shape[2] // (samples.shape[3] * samples.shape[4])


@node("LTXVCropGuides", category=CATEGORY, return_names=("positive", "negative", "latent"))
def ltxv_crop_guides(
    positive: CONDITIONING, negative: CONDITIONING, latent: LATENT
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """A video and its conditionings without guides, as they were before LTXVAddGuide."""
    samples, mask = latent["samples"], mask_of(latent)
    if count := guide_frames(positive, samples):
        samples, mask = samples[:, :, :-count], mask[:, :, :-count]
        positive, negative = (
            with_options(one, **{GUIDE_SPANS: None, GUIDE_ENTRIES: None}) for one in (positive, negative)
        )
    return positive, negative, {"samples": samples, "noise_mask": mask}
