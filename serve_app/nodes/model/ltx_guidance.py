"""The nodes that lead LTX-2 away from what it makes of the positive with part of its attention left out.

Sources: Hyung et al. 2024, arXiv:2411.18664 (spatio-temporal guidance); HaCohen et al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

import re
from math import isclose
from typing import Annotated, TypeAlias

from serve_app.nodes.audio.latents import encoded
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, InputType, Text
from serve_app.nodes.sockets import AUDIO, CONDITIONING, MODEL, RUNTIME
from serve_app.nodes.video.ltx import CATEGORY as CONDITIONING_CATEGORY
from serve_app.nodes.video.wan import both
from serve_app.recipe.guidance import PerturbedStreams, SkipLayerGuidance
from serve_app.recipe.recipe import Recipe

CATEGORY = "advanced/guidance"
Start: TypeAlias = Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001, advanced=True)]
End: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001, advanced=True)]


def guided(model: Recipe, perturbed: PerturbedStreams, scale: float, start: float, end: float) -> Recipe:
    """Return a model that is led away from a perturbed positive; at scale 0 as it is."""
    return model.with_patch(SkipLayerGuidance(perturbed, scale, start, end)) if scale else model


@node(
    "LTXVReferenceAudio",
    "LTXV Reference Audio (ID-LoRA)",
    category=CONDITIONING_CATEGORY,
    description="Set reference audio for ID-LoRA speaker identity transfer. Encodes a reference audio clip into the "
    "conditioning and optionally patches the model with identity guidance (extra forward pass without reference, "
    "amplifying the speaker identity effect).",
    return_names=("MODEL", "positive", "negative"),
)
async def ltxv_reference_audio(
    model: MODEL,
    positive: CONDITIONING,
    negative: CONDITIONING,
    reference_audio: AUDIO | None,
    audio_vae: Annotated[Recipe, InputType("VAE", {"display_name": "Audio VAE"})],
    identity_guidance_scale: Annotated[float, Float(3.0, min=0.0, max=100.0, step=0.01, round=0.01)],
    start_percent: Start,
    end_percent: End,
    runtime: RUNTIME,
) -> tuple[MODEL, CONDITIONING, CONDITIONING]:
    """A sound whose speaker a video's sound is to have, as of an ID-LoRA.

    Return the model, led away from the sound without the reference, and both conditionings with it.
    """
    latents = (await encoded(runtime, audio_vae, reference_audio))["samples"]
    tokens = {"tokens": latents.transpose(1, 2).flatten(2)}
    made = guided(model, PerturbedStreams(unreferenced=True), identity_guidance_scale, start_percent, end_percent)
    return made, *both(positive, negative, ref_audio=tokens)


@node(
    "LTXVSpatioTemporalGuidance",
    "LTXV Spatio-Temporal Guidance (STG)",
    category=CATEGORY,
    description="Runs one extra pass per step with the self-attention of the selected blocks degraded to a "
    "value-passthrough, then guides away from it - improving spatial detail and motion coherence.",
)
def ltxv_spatio_temporal_guidance(
    model: MODEL,
    scale: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01, round=0.01)],
    blocks: Annotated[str, Text("29", multiline=False)],
    start_percent: Start,
    end_percent: End,
) -> MODEL:
    """A model led away from what it makes where each token of some blocks sees only itself.

    Return it with the patch, or as it is where no block is named.
    """
    stilled = tuple(sorted({int(number) for number in re.findall(r"\d+", blocks)}))
    return guided(model, PerturbedStreams(stilled), scale, start_percent, end_percent) if stilled else model


@node(
    "LTXVModalityGuidance",
    "LTXV Modality Guidance (A/V coupling)",
    category=CATEGORY,
    description="Cross-modal (audio-video) guidance for LTXV-AV. Runs one extra forward pass per step with the a2v/v2a "
    "cross-attention severed, then pushes the result toward the coupled prediction - strengthening audio-visual sync "
    "(e.g. lip-sync). Reference default modality_scale is 3.0. Stacks with the dual-CFG guider and STG. Set to 1.0 to "
    "disable (no extra pass).",
)
def ltxv_modality_guidance(
    model: MODEL,
    modality_scale: Annotated[float, Float(3.0, min=1.0, max=100.0, step=0.1, round=0.01)],
    start_percent: Start,
    end_percent: End,
) -> MODEL:
    """A model led away from what it makes of a video and a sound that do not attend to each other."""
    scale = 0.0 if isclose(modality_scale, 1.0) else modality_scale - 1.0
    return guided(model, PerturbedStreams(apart=True), scale, start_percent, end_percent)
