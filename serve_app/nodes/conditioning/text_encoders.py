"""The nodes that make CONDITIONING for transformers: a text for each encoder, and how texts are filled up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.runtime import Runtime
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.recipe import Recipe, T5Padding
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import Conditioning, Texts

_TEXT = ("STRING", {"multiline": True, "dynamicPrompts": True})
_SIDE = ("INT", {"default": 1024, "min": 0, "max": MAX_RESOLUTION})
_COUNT = ("INT", {"default": 0, "min": 0, "max": 10000, "step": 1})


class CLIPTextEncodeFlux:
    """A text for each of Flux.1's encoders, and how closely the model is to follow them."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/flux"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        guidance = ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1})
        return {
            "required": {"clip": ("CLIP",), "clip_l": _TEXT, "t5xxl": _TEXT, "guidance": guidance},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self, clip: Recipe, clip_l: str, t5xxl: str, guidance: float, runtime: Runtime
    ) -> tuple[Conditioning]:
        """Return the texts' conditioning with the guidance."""
        return (with_options(await runtime.encode_text(clip, Texts(l=clip_l, t5xxl=t5xxl)), guidance=guidance),)


class CLIPTextEncodeSD3:
    """A text for each of SD 3's encoders."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/stable diffusion"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        padding = (["none", "empty_prompt"],)
        return {
            "required": {
                "clip": ("CLIP",),
                "clip_l": _TEXT,
                "clip_g": _TEXT,
                "t5xxl": _TEXT,
                "empty_padding": padding,
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self, clip: Recipe, clip_l: str, clip_g: str, t5xxl: str, empty_padding: str, runtime: Runtime
    ) -> tuple[Conditioning]:
        """Return the texts' conditioning. empty_padding: "none" leaves out an encoder whose text is empty."""
        texts = Texts(l=clip_l, g=clip_g, t5xxl=t5xxl, skip_empty=empty_padding == "none")
        return (await runtime.encode_text(clip, texts),)


SYSTEM_PROMPTS: Mapping[str, str] = {
    "superior": "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts.",
    "alignment": "You are an assistant designed to generate high-quality images with the highest degree of image-text "
    "alignment based on textual prompts.",
}
"""What Lumina-Image 2.0 was trained to be told before a text."""


class CLIPTextEncodeLumina2:
    """A text for Lumina-Image 2.0, after one of the sentences that it was trained with."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/lumina"
    DESCRIPTION = "Encodes a system prompt and a user prompt into conditioning that guides the diffusion model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"system_prompt": (list(SYSTEM_PROMPTS),), "user_prompt": _TEXT, "clip": ("CLIP",)},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(self, clip: Recipe, user_prompt: str, system_prompt: str, runtime: Runtime) -> tuple[Conditioning]:
        """Return the conditioning of both."""
        text = f"{SYSTEM_PROMPTS[system_prompt]} <Prompt Start> {user_prompt}"
        return (await runtime.encode_text(clip, text),)


class CLIPTextEncodeHiDream:
    """A text for each of HiDream's encoders."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/hidream"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip": ("CLIP",), **dict.fromkeys(("clip_l", "clip_g", "t5xxl", "llama"), _TEXT)},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self, clip: Recipe, clip_l: str, clip_g: str, t5xxl: str, llama: str, runtime: Runtime
    ) -> tuple[Conditioning]:
        """Return the texts' conditioning."""
        return (await runtime.encode_text(clip, Texts(l=clip_l, g=clip_g, t5xxl=t5xxl, llama=llama)),)


class CLIPTextEncodePixArtAlpha:
    """A text for PixArt α, and the size of the picture it describes."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/pixart"
    DESCRIPTION = "Encodes text and sets the resolution conditioning for PixArt Alpha. Does not apply to PixArt Sigma."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"width": _SIDE, "height": _SIDE, "text": _TEXT, "clip": ("CLIP",)},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(self, clip: Recipe, width: int, height: int, text: str, runtime: Runtime) -> tuple[Conditioning]:
        """Return the text's conditioning with the size."""
        return (with_options(await runtime.encode_text(clip, text), width=width, height=height),)


class T5TokenizerOptions:
    """How T5's texts are filled up, for models that were trained with another length than the usual."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_options"
    CATEGORY = "model/conditioning"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "min_padding": _COUNT, "min_length": _COUNT}}

    def set_options(self, clip: Recipe, min_padding: int, min_length: int) -> tuple[Recipe]:
        """Return the text encoder, whose texts get so many pads at least and are at least so long."""
        return (clip.with_patch(T5Padding(min_padding, min_length)),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CLIPTextEncodeFlux": CLIPTextEncodeFlux,
    "CLIPTextEncodeSD3": CLIPTextEncodeSD3,
    "CLIPTextEncodeHiDream": CLIPTextEncodeHiDream,
    "CLIPTextEncodeLumina2": CLIPTextEncodeLumina2,
    "CLIPTextEncodePixArtAlpha": CLIPTextEncodePixArtAlpha,
    "T5TokenizerOptions": T5TokenizerOptions,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CLIPTextEncodeSD3": "CLIP Text Encode (SD3)",
    "CLIPTextEncodeHiDream": "CLIP Text Encode (HiDream)",
    "CLIPTextEncodeLumina2": "CLIP Text Encode (Lumina 2)",
    "CLIPTextEncodePixArtAlpha": "CLIP Text Encode (PixArt Alpha)",
    "T5TokenizerOptions": "T5 Tokenizer Options",
}
