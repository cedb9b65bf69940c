"""The node by which language models, loaded as text encoders, generate text: prompts that are refined, as a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.graph.dynamic import DYNAMIC_COMBO
from serve_app.recipe import Recipe
from serve_app.values import GenerationRequest, TokenSampling

_SAMPLING: Mapping[str, Any] = {
    "required": {
        "temperature": ("FLOAT", {"default": 0.7, "min": 0.01, "max": 2.0, "step": 0.000001}),
        "top_k": ("INT", {"default": 64, "min": 0, "max": 1000}),
        "top_p": ("FLOAT", {"default": 0.95, "min": 0.0, "max": 1.0, "step": 0.01}),
        "min_p": ("FLOAT", {"default": 0.05, "min": 0.0, "max": 1.0, "step": 0.01}),
        "repetition_penalty": ("FLOAT", {"default": 1.05, "min": 0.0, "max": 5.0, "step": 0.01}),
        "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
    },
    "optional": {"presence_penalty": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 5.0, "step": 0.01})},
}


class TextGenerate:
    """Text from a language model. It reads text alone."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("generated_text",)
    FUNCTION = "generate"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = [{"key": "on", "inputs": _SAMPLING}, {"key": "off", "inputs": {"required": {}}}]
        return {
            "required": {
                "clip": ("CLIP",),
                "prompt": ("STRING", {"default": "", "multiline": True, "dynamicPrompts": True}),
                "max_length": ("INT", {"default": 512, "min": 1, "max": 32768}),
                "sampling_mode": (DYNAMIC_COMBO, {"display_name": "Sampling Mode", "options": options}),
            },
            "optional": {
                "image": ("IMAGE",),
                "video": ("IMAGE",),
                "audio": ("AUDIO",),
                "thinking": ("BOOLEAN", {"default": False}),
                "use_default_template": ("BOOLEAN", {"default": True, "advanced": True}),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def generate(
        self,
        clip: Recipe,
        prompt: str,
        max_length: int,
        sampling_mode: Mapping[str, Any],
        runtime: Runtime,
        thinking: bool = False,
        use_default_template: bool = True,
        **others: Any,
    ) -> tuple[str]:
        """Return the text. Errors: NodeError for an encoder that generates none, or where it is to see or hear."""
        for name in ("image", "video", "audio"):
            if others.get(name) is not None:
                raise NodeError(f"language models read text alone here; '{name}' is linked, so take the link away")
        numbers = {name: value for name, value in sampling_mode.items() if name != "sampling_mode"}
        sampling = TokenSampling(**numbers) if sampling_mode["sampling_mode"] == "on" else None
        request = GenerationRequest(prompt, max_length, sampling, thinking, use_default_template)
        return (await runtime.generate_text(clip, request),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {"TextGenerate": TextGenerate}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {"TextGenerate": "Generate Text"}
