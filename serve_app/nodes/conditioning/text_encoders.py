"""The nodes that make CONDITIONING for transformers: a text for each encoder, and how texts are padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, RUNTIME
from serve_app.recipe.text import T5Padding
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import Texts

Line: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]
Side: TypeAlias = Annotated[int, Int(1024, min=0, max=MAX_RESOLUTION)]
Count: TypeAlias = Annotated[int, Int(0, min=0, max=10000, step=1)]


@node("CLIPTextEncodeFlux", category="model/conditioning/flux", function="encode")
async def clip_text_encode_flux(
    clip: CLIP,
    clip_l: Line,
    t5xxl: Line,
    guidance: Annotated[float, Float(3.5, min=0.0, max=100.0, step=0.1)],
    runtime: RUNTIME,
) -> CONDITIONING:
    """A text for each of Flux.1's encoders, and how closely the model is to follow them."""
    return with_options(await runtime.encode_text(clip, Texts(l=clip_l, t5xxl=t5xxl)), guidance=guidance)


@node("CLIPTextEncodeSD3", "CLIP Text Encode (SD3)", category="model/conditioning/stable diffusion", function="encode")
async def clip_text_encode_sd3(
    clip: CLIP,
    clip_l: Line,
    clip_g: Line,
    t5xxl: Line,
    empty_padding: Annotated[str, Choice(["none", "empty_prompt"])],
    runtime: RUNTIME,
) -> CONDITIONING:
    """A text for each of SD 3's encoders.

    Return the texts' conditioning. empty_padding: "none" leaves out an encoder whose text is empty.
    """
    texts = Texts(l=clip_l, g=clip_g, t5xxl=t5xxl, skip_empty=empty_padding == "none")
    return await runtime.encode_text(clip, texts)


SYSTEM_PROMPTS: Mapping[str, str] = {
    "superior": "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts.",
    "alignment": "You are an assistant designed to generate high-quality images with the highest degree of image-text "
    "alignment based on textual prompts.",
}
"""The system prompt that Lumina-Image 2.0 was trained with."""


@node("CLIPTextEncodeHiDream", "CLIP Text Encode (HiDream)", category="model/conditioning/hidream", function="encode")
async def clip_text_encode_hidream(
    clip: CLIP, clip_l: Line, clip_g: Line, t5xxl: Line, llama: Line, runtime: RUNTIME
) -> CONDITIONING:
    """A text for each of HiDream's encoders."""
    return await runtime.encode_text(clip, Texts(l=clip_l, g=clip_g, t5xxl=t5xxl, llama=llama))


@node(
    "CLIPTextEncodeLumina2",
    "CLIP Text Encode (Lumina 2)",
    category="model/conditioning/lumina",
    function="encode",
    description="Encodes a system prompt and a user prompt into conditioning that guides the diffusion model.",
    order=("system_prompt", "user_prompt"),
)
async def clip_text_encode_lumina2(
    clip: CLIP, user_prompt: Line, system_prompt: Annotated[str, Choice(SYSTEM_PROMPTS)], runtime: RUNTIME
) -> CONDITIONING:
    """A text for Lumina-Image 2.0, after one of the sentences that it was trained with."""
    text = f"{SYSTEM_PROMPTS[system_prompt]} <Prompt Start> {user_prompt}"
    return await runtime.encode_text(clip, text)


@node(
    "CLIPTextEncodePixArtAlpha",
    "CLIP Text Encode (PixArt Alpha)",
    category="model/conditioning/pixart",
    function="encode",
    description="Encodes text and sets the resolution conditioning for PixArt Alpha. Does not apply to PixArt Sigma.",
    order=("width", "height", "text"),
)
async def clip_text_encode_pixart_alpha(
    clip: CLIP, width: Side, height: Side, text: Line, runtime: RUNTIME
) -> CONDITIONING:
    """A text for PixArt α, and the size of the picture it describes."""
    return with_options(await runtime.encode_text(clip, text), width=width, height=height)


@node(
    "T5TokenizerOptions",
    "T5 Tokenizer Options",
    category="model/conditioning",
    function="set_options",
    experimental=True,
)
def t5_tokenizer_options(clip: CLIP, min_padding: Count, min_length: Count) -> CLIP:
    """How T5's texts are filled up, for models that were trained with another length than the usual.

    Return the text encoder with a least number of padding tokens and a least length of its texts.
    """
    return clip.with_patch(T5Padding(min_padding, min_length))
