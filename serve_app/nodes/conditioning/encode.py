"""The nodes that make CONDITIONING from text and from other CONDITIONING.

Where and when an entry counts is said by those in `conditioning_region`.
"""

from __future__ import annotations

from typing import Annotated

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, RUNTIME
from serve_app.recipe.text import ClipSkip


@node(
    "CLIPTextEncode",
    "CLIP Text Encode (Prompt)",
    category="model/conditioning",
    function="encode",
    description="Encodes a text prompt into conditioning that guides the diffusion model.",
    order=("text",),
)
async def clip_text_encode(
    clip: CLIP, text: Annotated[str, Text(multiline=True, dynamicPrompts=True)], runtime: RUNTIME
) -> CONDITIONING:
    """Text to conditioning, in ComfyUI's prompt syntax. Return the text's conditioning."""
    return await runtime.encode_text(clip, text)


@node("CLIPSetLastLayer", "CLIP Set Last Layer", category="model/conditioning", function="set_last_layer")
def clip_set_last_layer(clip: CLIP, stop_at_clip_layer: Annotated[int, Int(-1, min=-24, max=-1, step=1)]) -> CLIP:
    """Clip skip: take the text encoder's output from an earlier layer."""
    return clip.with_patch(ClipSkip(stop_at_clip_layer))


@node("ConditioningAverage", "Conditioning (Average)", category="model/conditioning/transform", function="addWeighted")
def conditioning_average(
    conditioning_to: CONDITIONING,
    conditioning_from: CONDITIONING,
    conditioning_to_strength: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)],
) -> CONDITIONING:
    """Entries part of the way from another conditioning to what they were.

    Return each entry of `conditioning_to`, mixed with the first of the other.

    The other's text is cut to the entry's length, or followed by zeros; so are their pooled outputs mixed, and one
    that only the other has is taken as it is.
    """
    share = conditioning_to_strength
    other, said = conditioning_from[0]
    pooled = said.get("pooled_output")
    made = []
    for cond, options in conditioning_to:
        start = other[:, : cond.shape[1]]
        missing = cond.shape[1] - start.shape[1]
        start = torch.nn.functional.pad(start, (0, 0, 0, missing))
        mixed = dict(options)
        if pooled is not None:
            own = options.get("pooled_output")
            mixed["pooled_output"] = pooled if own is None else own * share + pooled * (1.0 - share)
        made.append((cond * share + start * (1.0 - share), mixed))
    return made


@node("ConditioningCombine", "Conditioning (Combine)", category="model/conditioning/transform", function="combine")
def conditioning_combine(conditioning_1: CONDITIONING, conditioning_2: CONDITIONING) -> CONDITIONING:
    """All entries of both. Return the entries of the first, then those of the second."""
    return [*conditioning_1, *conditioning_2]


@node("ConditioningConcat", "Conditioning (Concat)", category="model/conditioning/transform", function="concat")
def conditioning_concat(conditioning_to: CONDITIONING, conditioning_from: CONDITIONING) -> CONDITIONING:
    """Entries followed by the text of another conditioning.

    Return each entry of `conditioning_to` with the first text of the other behind its own.
    """
    following = conditioning_from[0][0]
    return [(torch.cat((cond, following), dim=1), dict(options)) for cond, options in conditioning_to]


@node("ConditioningZeroOut", "Conditioning Zero Out", category="model/conditioning/transform", function="zero_out")
def conditioning_zero_out(conditioning: CONDITIONING) -> CONDITIONING:
    """Entries that say nothing: all zeros. Return the entries with zeros for texts, pooled outputs and lyrics."""
    made = []
    for cond, options in conditioning:
        zeroed = dict(options)
        for name in ("pooled_output", "conditioning_lyrics", "conditioning_scale"):
            if options.get(name) is not None:
                zeroed[name] = torch.zeros_like(options[name])
        made.append((torch.zeros_like(cond), zeroed))
    return made


@node(
    "ConditioningMultiply",
    "Conditioning (Multiply)",
    category="model/conditioning/transform",
    function="multiply",
    search_aliases=("scale conditioning", "scale prompt", "multiply conditioning", "multiply prompt"),
)
def conditioning_multiply(
    conditioning: CONDITIONING, multiplier: Annotated[float, Float(1.0, min=-100.0, max=100.0, step=0.01)]
) -> CONDITIONING:
    """Entries times a number. Return the entries with their texts and pooled outputs multiplied."""
    made = []
    for cond, options in conditioning:
        scaled = dict(options)
        if options.get("pooled_output") is not None:
            scaled["pooled_output"] = options["pooled_output"] * multiplier
        made.append((cond * multiplier, scaled))
    return made
